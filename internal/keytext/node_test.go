package keytext_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// pathOf parses {x...} and returns the steps behind x.
func pathOf(t testing.TB, text string) []keytext.Step {
	t.Helper()
	tpl, err := keytext.Parse("{x" + text + "}")
	if err != nil {
		t.Fatal(err)
	}
	return tpl.Segments()[0].Path
}

// at is what a path leads to, as text: NULL, ? for what does not fit.
func at(t testing.TB, n keytext.Node, steps string) string {
	t.Helper()
	n, ok := n.Walk(pathOf(t, steps))
	if !ok {
		return "?"
	}
	text, null, ok := n.Append(nil)
	switch {
	case !ok:
		return "?"
	case null:
		return "NULL"
	}
	return string(text)
}

func TestPathJSON(t *testing.T) {
	t.Parallel()
	const doc = ` { "user_id" : 42, "n": -1.50e+3, "s": "a\"b\\c\/\u00fc\ud83c\udf0d\n", "t":true, "f":false, "z":null, "o":{"a":{"b":"deep"},"":1},
		"l":[1,"two",[3,{"x":"}]"}],null], "e":[], "u ser.x":"q", "dup":1, "dup":2, "\u006bey":"k", "lone":"\ud83c", "half":"\ud83c\u0041", "low":"\udf0d", "nul":"\u0000", "text":"{\"a\":1}"} `
	for steps, want := range map[string]string{
		".user_id": "42", ".n": "-1.50e+3", ".s": "a\"b\\c/ü🌍\n", ".t": "true", ".f": "false", ".z": "NULL", ".o": "?", ".o.a.b": "deep",
		".l[0]": "1", ".l[1]": "two", ".l[2][0]": "3", ".l[2][1].x": "}]", ".l[3]": "NULL", ".l[3].x": "NULL", ".l[4]": "NULL", ".l": "?", ".l.x": "?", ".e[0]": "NULL",
		`."u ser.x"`: "q", ".dup": "2", ".key": "k", ".lone": "?", ".half": "?", ".low": "?", ".nul": "?", ".none": "NULL", ".none.more[3]": "NULL", ".user_id.x": "?", ".t[0]": "?", ".text.a": "?", "": "?",
	} {
		if got := at(t, keytext.JSONNode([]byte(doc)), steps); got != want {
			t.Errorf("%s: got %q, want %q", steps, got, want)
		}
	}
	for doc, want := range map[string]string{`7`: "7", ` "x" `: "x", `null`: "NULL", `[1]`: "?", `{}`: "?", ``: "?", `nul`: "?", `"x`: "?", `"x""`: "?", `1x`: "?", `tru`: "?"} {
		if got := at(t, keytext.JSONNode([]byte(doc)), ""); got != want {
			t.Errorf("%s: got %q, want %q", doc, got, want)
		}
	}
	for _, bad := range []string{`{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{a:1}`, `{"a" 1}`, `{"a":1}}`, `[`, `[1`, `[1,`, `[1]]`, `[,1]`, `{"a":[}`, `"`, `{"a\`} {
		for _, steps := range []string{".a", "[5]"} {
			if got := at(t, keytext.JSONNode([]byte(bad)), steps); got != "?" {
				t.Errorf("%s of %s: got %q, want it refused", steps, bad, got)
			}
		}
	}
}

func elements(t testing.TB, n keytext.Node) string {
	t.Helper()
	var out []string
	ok := n.Each(func(e keytext.Node) bool {
		out = append(out, at(t, e, ""))
		return true
	})
	if !ok {
		out = append(out, "!")
	}
	return strings.Join(out, "|")
}

func TestPathArray(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{}`: "", `{1}`: "1", `{1,2,NULL}`: "1|2|NULL", `{a,"b c","",NULL,"null","x\"y","back\\slash","{",ü,"a,b"}`: `a|b c||NULL|null|x"y|back\slash|{|ü|a,b`,
		`[0:1]={a,b}`: "a|b", `[-2:-1][1:1]={{a},{b}}`: "?|?", `{{1,2},{3,4}}`: "?|?", `{ a , b }`: "a|b", `{"a" , b}`: "a|b",
		``: "!", `{`: "!", `}`: "!", `{a`: "!", `{a,}`: "a|!", `{,a}`: "!", `{a}}`: "a|!", `{"a}`: "!", `{a"b"}`: "!", `{"a"b}`: "!", `{{a}`: "!", `[0:1]`: "!", `[x]={a}`: "!",
		`{a,b}x`: "!",
	} {
		if got := elements(t, keytext.ArrayNode([]byte(text), false)); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	matrix := keytext.ArrayNode([]byte(`[5:6][1:2]={{1,"}"},{NULL,4}}`), false)
	for steps, want := range map[string]string{"[0][0]": "1", "[0][1]": "}", "[1][0]": "NULL", "[1][1]": "4", "[2]": "NULL", "[0]": "?", ".x": "?", "[0][0][0]": "?"} {
		if got := at(t, matrix, steps); got != want {
			t.Errorf("%s of a matrix: got %s, want %s", steps, got, want)
		}
	}
	docs := keytext.ArrayNode([]byte(`{"{\"id\": 7, \"s\": \"a\\\\b\"}",NULL,3}`), true)
	for steps, want := range map[string]string{"[0].id": "7", "[0].s": `a\b`, "[1].id": "NULL", "[2]": "3", "[2].id": "?"} {
		if got := at(t, docs, steps); got != want {
			t.Errorf("%s of jsonb[]: got %s, want %s", steps, got, want)
		}
	}
}

func TestPathSyntax(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"x.a", "x.a.b[0][*].c", "x[*]", `x."a b".c`, `"x y"[1]`, `"x y".a`, "old.x.a", "new.x[*].a", `"old".a`, "x.user-id", "x.0", "old.old.old"} {
		tpl, err := keytext.Parse("{" + good + "}")
		if err != nil {
			t.Errorf("{%s}: %v", good, err)
			continue
		}
		s := tpl.Segments()[0]
		again, err := keytext.Parse(`{"` + s.Column + `"` + strings.TrimPrefix(s.Source(), s.Column) + "}")
		if err != nil || again.Segments()[0].Source() != s.Source() {
			t.Errorf("{%s}: the source %q is read as another: %v", good, s.Source(), err)
		}
	}
	for _, bad := range []string{"x.", "x..a", "x[", "x[]", "x[-1]", "x[01]", "x[a]", "x[**]", "x[0]a", `x."a`, `x.""`, `x."a"b`, "x.a b", ".a", "[0]", "old.", "x[9999999999]", "x" + strings.Repeat(".a", 17)} {
		if _, err := keytext.Parse("{" + bad + "}"); err == nil {
			t.Errorf("{%s} was taken", bad)
		}
	}
}

// FuzzArrayText: no text makes the walk over an array panic, and what
// AppendValue prints is read back as it was.
func FuzzArrayText(f *testing.F) {
	for _, s := range []string{`{a,"b c",NULL}`, `[0:1]={{a},{"}"}}`, `{"\\"`, `{`, ``} {
		f.Add(s, "x")
	}
	f.Fuzz(func(t *testing.T, text, other string) {
		n := keytext.GuessNode([]byte(text), pathOf(t, "[*]"))
		n.Each(func(e keytext.Node) bool {
			at(t, e, "")
			return e.Each(func(keytext.Node) bool { return true })
		})
		printed, _, err := keytext.AppendValue(nil, []string{text, other})
		if err != nil {
			t.Fatal(err)
		}
		back := keytext.ArrayNode(printed, false)
		if a, b := at(t, back, "[0]"), at(t, back, "[1]"); a != text || b != other {
			t.Fatalf("%q and %q are printed as %s and read back as %q and %q", text, other, printed, a, b)
		}
	})
}

// FuzzPathJSON: no text makes the walk over JSON panic, and where a document is
// valid the walk finds what encoding/json does.
func FuzzPathJSON(f *testing.F) {
	for _, s := range []string{`{"a":{"a":[1,"x"]}}`, `{"a":"\ud83c\udf0d"}`, `[{"a":null}]`, `{"a":1,"a":{}}`, `{`, `"\u0000"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		n := keytext.JSONNode(doc)
		for _, steps := range []string{"", ".a", "[0]", ".a.a", ".a[1]", "[0].a"} {
			at(t, n, steps)
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(doc, &members) != nil || members == nil || !bytes.Contains(doc, []byte(`"a"`)) {
			return
		}
		var s string
		raw := members["a"]
		if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil || strings.ContainsAny(s, "\x00\ufffd") {
			return
		}
		if got := at(t, n, ".a"); got != s {
			t.Fatalf("a of %s: got %q, want %q", doc, got, s)
		}
	})
}
