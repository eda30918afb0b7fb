package keytext_test

import (
	"math/rand/v2"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// reference is the pattern by the words of its definition: [^:]+ for a
// placeholder, .+ for the last.
func reference(t *testing.T, tpl *keytext.Template) *regexp.Regexp {
	t.Helper()
	lits := tpl.Pattern().Literals()
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for i, lit := range lits {
		if i > 0 && i < len(lits)-1 {
			b.WriteString(`[^:]+`)
		} else if i > 0 {
			b.WriteString(`.+`)
		}
		b.WriteString(regexp.QuoteMeta(lit))
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

func randomTemplate(r *rand.Rand) string {
	pieces := []string{"a", "b:", ":", ":x", "-", "{p}", "{q}", "{r}", "*", "[a]", "?"}
	var b strings.Builder
	for range 1 + r.IntN(6) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

func randomValue(r *rand.Rand) string {
	values := []string{"1", "ab", "a-b", "x", ":", "a:b", "é", "*", "[a]", "a:x"}
	return values[r.IntN(len(values))]
}

// On random templates and names: matching agrees with the definition, captures
// put back give the name again, a glob finds every name, and two patterns that
// share a name can be unified.
func TestPatternProperties(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	matched, shared := 0, 0
	for range 20_000 {
		p, err := keytext.Parse(randomTemplate(r))
		if err != nil {
			t.Fatal(err)
		}
		q, err := keytext.Parse(randomTemplate(r))
		if err != nil {
			t.Fatal(err)
		}
		name := p.Append(nil, func(string) []byte { return []byte(randomValue(r)) })
		if r.IntN(3) == 0 {
			name = q.Append(nil, func(string) []byte { return []byte(randomValue(r)) })
		}
		want := reference(t, p).Match(name)
		if got := p.Pattern().Match(name); got != want {
			t.Fatalf("%q matches %q: %v, by definition %v", p, name, got, want)
		}
		captures, ok := p.Pattern().Captures(nil, name)
		if ok != want {
			t.Fatalf("%q captures %q: %v, by definition %v", p, name, ok, want)
		}
		if !ok {
			continue
		}
		matched++
		i := -1
		if again := p.Append(nil, func(string) []byte { i++; return captures[i] }); string(again) != string(name) {
			t.Fatalf("%q with captures %q of %q gives %q", p, captures, name, again)
		}
		if !strings.ContainsRune(string(name), '/') {
			glob := p.Pattern().Glob("ns:")
			if found, err := path.Match(glob, "ns:"+string(name)); err != nil || !found {
				t.Fatalf("glob %q of %q does not find %q (%v)", glob, p, name, err)
			}
		}
		if q.Pattern().Match(name) {
			shared++
			if !p.Pattern().Unify(q.Pattern()) || !q.Pattern().Unify(p.Pattern()) {
				t.Fatalf("%q and %q both match %q and do not unify", p, q, name)
			}
		}
	}
	if matched < 1000 || shared < 100 {
		t.Errorf("only %d names matched and %d were shared: the test shows little", matched, shared)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	p, err := keytext.Parse("user:{id}:post:{slug}")
	if err != nil {
		t.Fatal(err)
	}
	name := []byte("user:42:post:a:b")
	if n := testing.AllocsPerRun(100, func() {
		if !p.Pattern().Match(name) {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzTemplate: no text makes the parser panic, and what it accepts renders to
// a name that its own pattern knows, where values are plain.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"product:{id}", "{{x}}:{ old.a | lower | urlencode }", `{"a b"}-{new."c"}`, "{", "}", "{}", "{a.b}", "{a[*]}", "a{b}c{d}e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := keytext.Parse(text)
		if err != nil || p.HasPath() || strings.Contains(text, "date") { // 7 has no parts, and is no date
			return
		}
		name, ok, err := p.Render(func(string) (any, bool) { return int64(7), true })
		if err != nil || !ok || !p.Pattern().Match([]byte(name)) {
			t.Fatalf("%q renders %q, %v, %v; its pattern knows it: %v", text, name, ok, err, p.Pattern().Match([]byte(name)))
		}
	})
}
