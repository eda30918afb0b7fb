package keytext

import (
	"math/rand/v2"
	"path"
	"strings"
	"testing"
)

func TestGlobMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"user:*:posts", "user:1:posts", true},
		{"user:*:posts", "user::posts", true},
		{"user:*:posts", "user:1:2:posts", true},
		{"user:*:posts", "user:1:posts:3", false},
		{"*a*b", "xaab", true},
		{"*a*b", "xaa", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"a[b-d]e", "ace", true},
		{"a[d-b]e", "ace", true},
		{"a[^b-d]e", "ace", false},
		{"a[^b-d]e", "axe", true},
		{`a[\]]b`, "a]b", true},
		{"a[bc", "ab", true}, // to the end
		{`a\*b`, "a*b", true},
		{`a\*b`, "axb", false},
		{`a\`, `a\`, true},
		{"", "", true},
		{"*", "", true},
	} {
		if got := ParseGlob(c.glob).Match(c.name); got != c.want {
			t.Errorf("%q matches %q: %v, want %v", c.glob, c.name, got, c.want)
		}
	}
	for glob, want := range map[string]string{"user:*": "user:", `a\*[b]c?d`: "a*bc", "[ab]c": "", "abc": "abc"} {
		if got := ParseGlob(glob).Prefix(); got != want {
			t.Errorf("prefix of %q: %q, want %q", glob, got, want)
		}
	}
}

// words are all texts of the letters up to a length.
func words(letters string, length int) []string {
	all, last := []string{""}, []string{""}
	for range length {
		var next []string
		for _, w := range last {
			for i := range len(letters) {
				next = append(next, w+letters[i:i+1])
			}
		}
		all, last = append(all, next...), next
	}
	return all
}

func oneOf(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

// Against brute force: a glob and a template intersect if any short name has
// both forms. Short is enough to find most of those that do; one that is found
// must be told, always.
func TestIntersectsAgainstBruteForce(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	names := words("ab:", 6)
	both, neither := 0, 0
	for range 3000 {
		var glob, template strings.Builder
		for range 1 + r.IntN(5) {
			glob.WriteString(oneOf(r, "a", "b", ":", "*", "?", "[ab]", "[^a]", `\a`))
		}
		placeholders := 0
		for range 1 + r.IntN(4) {
			if r.IntN(2) == 0 && placeholders < 2 && !strings.HasSuffix(template.String(), "}") {
				placeholders++
				template.WriteString([]string{"{x}", "{y}"}[placeholders-1])
				continue
			}
			template.WriteString(oneOf(r, "a", "b", ":"))
		}
		prefix := oneOf(r, "", "", "a:")
		parsed, err := Parse(template.String())
		if err != nil {
			t.Fatalf("%q: %v", template.String(), err)
		}
		p, g := parsed.Pattern(), ParseGlob(glob.String())
		found := ""
		for _, n := range names {
			local, ok := strings.CutPrefix(n, prefix)
			if got, err := path.Match(glob.String(), n); err == nil && got != g.Match(n) {
				t.Fatalf("%q matches %q: %v", glob.String(), n, !got) // no slash in them
			}
			if ok && p.Match([]byte(local)) && g.Match(n) {
				found = n
				break
			}
		}
		got := p.Intersects(prefix, g)
		if found != "" && !got {
			t.Fatalf("%q has the form of %q behind %q and of %q, which are said to have none in common", found, template.String(), prefix, glob.String())
		}
		switch {
		case got:
			both++
		default:
			neither++
		}
		// Six letters hold the shortest common name of what is this short, but
		// for where both insist on many.
		if got && found == "" && len(template.String())+len(glob.String()) < 9 {
			t.Errorf("%q behind %q and %q are said to intersect, and no short name does", template.String(), prefix, glob.String())
		}
	}
	if both < 300 || neither < 300 {
		t.Errorf("%d pairs intersect and %d do not: that shows little", both, neither)
	}
}
