package rules_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A set is all of its files: each is listed, after the one that includes it, and
// a pattern's in the order of their names.
func TestIncludeReadsInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"rules.yaml":  "version: 1\nnamespace: shop\ninclude: [more/*.yaml, a.yaml]\nentries: {first: {key: 'first:{id}'}}\n",
		"more/c.yaml": "entries: {third: {key: 'third:{id}'}}\n",
		"more/b.yaml": "entries: {second: {key: 'second:{id}'}}\ninclude: ../d.yaml\n",
		"d.yaml":      "entries: {of_second: {key: 'of_second:{id}'}}\n",
		"a.yaml":      "entries: {fourth: {key: 'fourth:{id}'}}\n",
	})
	set, err := rules.Load(filepath.Join(dir, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var files, entries []string
	for _, f := range set.Files {
		rel, _ := filepath.Rel(dir, f)
		files = append(files, filepath.ToSlash(rel))
	}
	for _, c := range set.Entries {
		entries = append(entries, c.Name)
	}
	if want := []string{"rules.yaml", "more/b.yaml", "d.yaml", "more/c.yaml", "a.yaml"}; !slices.Equal(files, want) {
		t.Errorf("files %q, want %q", files, want)
	}
	if want := []string{"first", "second", "of_second", "third", "fourth"}; !slices.Equal(entries, want) {
		t.Errorf("entries %q, want %q", entries, want)
	}
}

// Text that comes from somewhere else than a file reads nothing from the disk.
func TestParseIncludesNothing(t *testing.T) {
	t.Parallel()
	_, err := rules.Parse("rules.yaml", []byte("version: 1\ninclude: testdata/include/catalogue.yaml\n"))
	if err == nil || !strings.Contains(err.Error(), "rules.yaml:2:10: include has a meaning in files only") {
		t.Errorf("error %v", err)
	}
}

// A file that is named twice, by whatever path, is read once and said.
func TestLoadFileTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"a.yaml": "version: 1\nnamespace: shop\ninclude: b.yaml\n",
		"b.yaml": "version: 1\nentries: {b: {key: 'b:{id}'}}\n",
	})
	if err := os.Symlink(filepath.Join(dir, "b.yaml"), filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, second := range []string{"a.yaml", "b.yaml", "link.yaml"} {
		_, err := rules.Load(filepath.Join(dir, "a.yaml"), filepath.Join(dir, second))
		if err == nil || !strings.Contains(err.Error(), "is read already") {
			t.Errorf("a.yaml and %s: error %v", second, err)
		}
	}
}

// Whatever a reload would read changes the fingerprint: a file, one that it
// includes, one that a pattern finds now and did not before; and nothing else.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	main := filepath.Join(dir, "rules.yaml")
	writeFiles(t, dir, map[string]string{
		"rules.yaml":   "version: 1\nnamespace: shop\ninclude: ['d/*.yaml', '${LETHE_NO_SUCH_VARIABLE:-one}.yaml', circle.yaml]\n",
		"one.yaml":     "include: deeper/two.yaml\n",
		"circle.yaml":  "include: rules.yaml\n",
		"d/a.yaml":     "entries: {a: {key: 'a:{id}'}}\n",
		"d/notes.text": "",
	})
	last := rules.Fingerprint(main)
	step := func(what string, changes bool, do func()) {
		t.Helper()
		do()
		now := rules.Fingerprint(main)
		if (now != last) != changes {
			t.Errorf("%s: fingerprint changed: %v, want %v", what, now != last, changes)
		}
		last = now
	}
	write := func(name, text string) func() {
		return func() { writeFiles(t, dir, map[string]string{name: text}) }
	}
	step("nothing", false, func() {})
	step("the file itself", true, write("rules.yaml", "version: 1\nnamespace: store\ninclude: ['d/*.yaml', '${LETHE_NO_SUCH_VARIABLE:-one}.yaml', circle.yaml]\n"))
	step("an included file", true, write("d/a.yaml", "entries: {a: {key: 'aa:{id}'}}\n"))
	step("a file that a pattern finds", true, write("d/b.yaml", "entries: {b: {key: 'b:{id}'}}\n"))
	step("a file that no pattern finds", false, write("d/c.text", "entries: {b: {key: 'b:{id}'}}\n"))
	step("a missing file appears, two includes away", true, write("deeper/two.yaml", "entries: {}\n"))
	step("it changes", true, write("deeper/two.yaml", "rules: []\n"))
	step("it breaks", true, write("deeper/two.yaml", "rules: [\n"))
	step("it goes", true, func() {
		if err := os.Remove(filepath.Join(dir, "deeper/two.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	step("one of the pattern goes", true, func() {
		if err := os.Remove(filepath.Join(dir, "d/b.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	step("the file goes", true, func() {
		if err := os.Remove(main); err != nil {
			t.Fatal(err)
		}
	})
}

// What a variable becomes is text of its place: it has the type that it looks
// like only where it stands alone and unquoted.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	set, err := rules.Options{Env: testEnv}.Load("testdata/environment.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := set.Class("product")
	if c.TTL != 90*time.Second || c.NegativeTTL != time.Minute || c.MaxValue != 64<<10 || len(c.Versions) != 7 || c.L1 {
		t.Errorf("entry %+v", c)
	}
	if c.Owner != "catalogue" {
		t.Errorf("owner %q: an empty variable takes the default", c.Owner)
	}
	if want := "Costs $5, ${NOT} a variable, $${NUMBER} and ."; c.Description != want {
		t.Errorf("description %q, want %q", c.Description, want)
	}
	if got := c.Tags[0].String(); got != "list:[a, b]" {
		t.Errorf("tag %q", got)
	}
	r := set.Rules[0]
	if r.Name != "acme" || r.QualifiedTable() != "public.products" || r.When != `new.name == "acme" || op == "delete"` || set.Namespace != "shop" {
		t.Errorf("namespace %q, rule %+v", set.Namespace, r)
	}
	set, err = rules.Options{Env: testEnv}.Load("testdata/environment_null.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c := set.Class("product"); c.TTL != 0 || c.Owner != "" {
		t.Errorf("entry %+v: what a variable leaves empty is not said", c)
	}
}

// No finding repeats what came from the environment.
func TestFindingsKeepSecrets(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"environment_secret.bad", "environment_secret_live.bad"} {
		fs, _ := findingsOf(t, "testdata/"+name+".yaml")
		if len(fs) == 0 {
			t.Fatalf("%s: nothing found", name)
		}
		for _, f := range fs {
			if text := f.String() + f.Fix + f.Rule + f.Entry; strings.Contains(text, "hunter2") {
				t.Errorf("%s: %s\n%s", name, f, f.Fix)
			}
		}
	}
}

// Defaults hold where nothing else is said, in included files too, and what an
// entry or a rule leaves empty it has said.
func TestDefaults(t *testing.T) {
	t.Parallel()
	set, err := rules.Load("testdata/defaults.good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := set.Class("product") // of the included file
	if c.TTL != 10*time.Minute || c.NegativeTTL != 5*time.Second || c.MaxStale != 2*time.Second || c.Mode != rules.Plain ||
		len(c.Versions) != 2 || c.MaxValue != 64<<10 || c.L1 || c.Owner != "shop" {
		t.Errorf("entry that says nothing: %+v", c)
	}
	c = set.Class("category")
	if c.TTL != time.Hour || c.NegativeTTL != 0 || c.MaxStale != 2*time.Second || c.Mode != rules.Exact || !c.L1 || c.Owner != "catalogue" {
		t.Errorf("entry that says most: %+v", c)
	}
	r := set.Rules[1]
	if r.Name != "product" || r.On != rules.OnUpdate|rules.OnDelete|rules.OnTruncate || r.Action != rules.Rewarm ||
		r.Cascade != (rules.Cascade{Depth: 1, Bound: true}) || !r.Strict || r.Owner != "shop" {
		t.Errorf("rule that says nothing: %+v", r)
	}
	r = set.Rules[0]
	if r.On != rules.OnUpdate || r.Action != rules.Delete || r.Cascade.Depth != rules.CascadeDepthDefault || r.Strict || r.Owner != "shop" {
		t.Errorf("rule that says most: %+v", r)
	}
}

// Defaults of an included file are its own: they stand before those of the file
// that includes it, and say nothing of its neighbours.
func TestDefaultsNest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"rules.yaml": "version: 1\nnamespace: shop\ndefaults: {entries: {ttl: 1m, owner: all}}\ninclude: [a.yaml, b.yaml]\n",
		"a.yaml":     "defaults: {entries: {ttl: 2m}}\nentries: {a: {key: 'a:{id}'}}\n",
		"b.yaml":     "defaults: {entries: {owner: ~}}\nentries: {b: {key: 'b:{id}'}}\n",
	})
	set, err := rules.Load(filepath.Join(dir, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if a := set.Class("a"); a.TTL != 2*time.Minute || a.Owner != "all" {
		t.Errorf("a: ttl %s, owner %q", a.TTL, a.Owner)
	}
	if b := set.Class("b"); b.TTL != time.Minute || b.Owner != "" {
		t.Errorf("b: ttl %s, owner %q", b.TTL, b.Owner)
	}
}
