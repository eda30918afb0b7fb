package rules_test

import (
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/keytext"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

type renderVectors struct {
	Values []struct {
		Type, SQL, Go, Value, Text string
	}
	Templates []struct {
		Template string
		Values   map[string]string
		Name     string
	}
}

func readVectors(t *testing.T) renderVectors {
	t.Helper()
	data, err := os.ReadFile("testdata/render.json")
	if err != nil {
		t.Fatal(err)
	}
	var v renderVectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Values) < 40 || len(v.Templates) < 8 {
		t.Fatalf("render.json has %d values and %d templates", len(v.Values), len(v.Templates))
	}
	return v
}

// The types that applications hold values in, beside the built-in ones.
type (
	mood    string
	rowUUID [16]byte
)

// goValue makes the Go value that a vector describes.
func goValue(t *testing.T, kind, value string) any {
	t.Helper()
	integer := func(bits int) int64 {
		i, err := strconv.ParseInt(value, 10, bits)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	raw := func() []byte {
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	switch kind {
	case "bool":
		return value == "true"
	case "int16":
		return int16(integer(16))
	case "int32":
		return int32(integer(32))
	case "int64":
		return integer(64)
	case "uint32":
		return uint32(integer(64))
	case "bigint":
		b, _ := new(big.Int).SetString(value, 10)
		return b
	case "float32":
		f, _ := strconv.ParseFloat(value, 32)
		return float32(f)
	case "float64":
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		return f
	case "string":
		return mood(value)
	case "bytes":
		return raw()
	case "uuid":
		return rowUUID(raw())
	case "date":
		return keytext.Date(vectorTime(t, value))
	case "timestamp":
		return keytext.Timestamp(vectorTime(t, value))
	case "timestamptz":
		return vectorTime(t, value)
	case "addr":
		return netip.MustParseAddr(value)
	case "prefix":
		return netip.MustParsePrefix(value)
	case "int64s":
		var out []*int64
		for s := range strings.SplitSeq(value, ",") {
			if i, err := strconv.ParseInt(s, 10, 64); err == nil {
				out = append(out, &i)
			} else {
				out = append(out, nil)
			}
		}
		return out
	case "strings":
		var out []any
		for s := range strings.SplitSeq(value, "|") {
			if s == "NULL!" {
				out = append(out, nil)
			} else {
				out = append(out, s)
			}
		}
		return out
	case "nostrings":
		return []string{}
	case "matrix":
		return [][]int32{{1, 2}, {3, 4}}
	case "uuids":
		return [][16]byte{[16]byte(raw())}
	case "bools":
		return []bool{true, false}
	}
	t.Fatalf("unknown kind %q of Go value", kind)
	return nil
}

// vectorTime reads RFC 3339 with years that it does not have.
func vectorTime(t *testing.T, s string) time.Time {
	t.Helper()
	year := 0
	switch {
	case strings.HasPrefix(s, "+12026"):
		s, year = "2026"+s[6:], 10000
	case strings.HasPrefix(s, "-0043"):
		s, year = "2043"+s[5:], -2086
	}
	v, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return v.AddDate(year, 0, 0)
}

func TestRenderValues(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).Values {
		got, null, err := keytext.AppendValue([]byte("k:"), goValue(t, v.Go, v.Value))
		if err != nil || null || string(got) != "k:"+v.Text {
			t.Errorf("%s %s: AppendValue = %q, null %v, error %v; want %q", v.Type, v.SQL, got, null, err, "k:"+v.Text)
		}
	}
}

// The vectors are what Postgres prints, in the text form that the log carries.
func TestRenderVectorsArePostgresText(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	conn, err := pgconn.Connect(ctx, harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; CREATE TYPE render_mood AS ENUM ('good', 'so-so')`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	for _, v := range readVectors(t).Values {
		res, err := conn.Exec(ctx, "SELECT "+v.SQL).ReadAll()
		if err != nil {
			t.Errorf("%s: %v", v.SQL, err)
			continue
		}
		if got := string(res[0].Rows[0][0]); got != v.Text {
			t.Errorf("SELECT %s prints %q, the vector says %q", v.SQL, got, v.Text)
		}
	}
}

// One template gives the same name from a row of the log and from Go values.
func TestRenderTemplates(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t).Templates {
		set, err := rules.Parse("x.yaml", []byte("version: 1\nrules:\n- {name: r, table: t, keys: ['"+v.Template+"']}\n"))
		if err != nil {
			t.Errorf("%s: %v", v.Template, err)
			continue
		}
		name, ok, err := set.Rules[0].Keys[0].Render(func(c string) (any, bool) {
			s, ok := v.Values[c]
			return s, ok
		})
		if err != nil || !ok || name != v.Name {
			t.Errorf("Render(%s) = %q, %v, %v; want %q", v.Template, name, ok, err, v.Name)
		}
		plan, err := set.Compile()
		if err != nil {
			t.Fatal(err)
		}
		table := &change.Table{Schema: "public", Name: "t"}
		row := change.Row{}
		for c, s := range v.Values {
			table.Columns = append(table.Columns, change.Column{Name: c, Type: 25})
			row = append(row, change.Value{Kind: change.Text, Bytes: []byte(s)})
		}
		var ts rules.Targets
		if err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Insert, Table: table, New: row}, change.Position{}); err != nil {
			t.Fatal(err)
		}
		if len(ts.List) != 1 || string(ts.List[0].Name) != v.Name {
			t.Errorf("Match(%s) = %s, want %q", v.Template, show(&ts), v.Name)
		}
	}
}

// What is no date of the years 1 to 9999 has no name: an application gets an
// error, and the worker raises the class.
func TestRenderNoDate(t *testing.T) {
	t.Parallel()
	plan := compile(t, "version: 1\nentries: {day: {key: 'day:{d}'}}\nrules: [{name: r, table: t, keys: ['day:{at|date}']}]\n")
	tpl := plan.Set().Rules[0].Keys[0]
	table := &change.Table{Schema: "public", Name: "t", Identity: change.IdentityFull, Columns: []change.Column{{Name: "at", Type: 25}}}
	for _, text := range []string{"infinity", "-infinity", "", "today", "0044-03-15 BC", "0044-03-15 12:00:00+00 BC", "12026-02-28", "0000-01-01",
		"2026-02-29", "2026-13-01", "2026-00-01", "2026-1-1", "2026-02-28 ", "2026-02-28 24:00:00", "2026-02-28 12", "2026-02-28 12:60", "2026-02-28 12:00:00.",
		"2026-02-28 12:00:00+", "2026-02-28 12:00:00+1", "2026-02-28 12:00:00+01:02:03:", "2026-02-28x", "9999-12-31 23:00:00-02", "0001-01-01 01:00:00+02"} {
		if name, ok, err := tpl.Render(func(string) (any, bool) { return text, true }); err == nil {
			t.Errorf("Render with %q = %q, %v; want an error", text, name, ok)
		}
		unknown := 0
		m := plan.NewMatcher(rules.Observer{NewValueUnknown: func(*rules.Rule) { unknown++ }})
		var ts rules.Targets
		if err := m.Match(&ts, &change.Change{Op: change.Update, Table: table, Old: row(text), New: row("2026-02-28")}, change.Position{}); err != nil {
			t.Fatal(err)
		}
		if got, want := show(&ts), "key day:2026-02-28; raise day old_value"; got != want || unknown != 1 {
			t.Errorf("update of %q: %s, counted %d; want %s, counted once", text, got, unknown, want)
		}
	}
}

func TestRenderNull(t *testing.T) {
	t.Parallel()
	tpl, err := keytext.Parse("a:{x}:{y}")
	if err != nil {
		t.Fatal(err)
	}
	var none *int
	if _, ok, err := tpl.Render(func(c string) (any, bool) { return map[string]any{"x": 1, "y": none}[c], true }); ok || err != nil {
		t.Errorf("Render with NULL = %v, %v; want no name and no error", ok, err)
	}
	if _, _, err := tpl.Render(func(c string) (any, bool) { return 1, c == "x" }); err == nil || !strings.Contains(err.Error(), "no value for y") {
		t.Errorf("Render without a value: error %v", err)
	}
	for _, v := range []any{struct{}{}, time.Second, map[string]int{}, func() {}} {
		if _, _, err := keytext.AppendValue(nil, v); err == nil {
			t.Errorf("AppendValue(%T) gave text; want an error rather than a name nobody invalidates", v)
		}
	}
}
