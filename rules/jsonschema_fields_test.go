package rules

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The schema knows exactly the fields that the parser does.
func TestSchemaHasTheParsersFields(t *testing.T) {
	t.Parallel()
	parser := map[string][]string{
		"file": topFields, "defaults": defaultsFields, "defaults.entries": entryDefaultFields, "defaults.rules": ruleDefaultFields,
		"lint": lintFields, "entry": entryFields, "load": loadFields, "rule": ruleFields, "lookup": lookupFields, "tags": tagsFields,
		"cascade": cascadeFields, "dependency": dependencyFields, "warm": warmFields, "http": httpFields, "edge": edgeFields,
	}
	defs := grammar()
	if got, want := slices.Sorted(maps.Keys(defs)), slices.Sorted(maps.Keys(parser)); !slices.Equal(got, want) {
		t.Errorf("mappings of the schema %q, of the parser %q", got, want)
	}
	for name, def := range defs {
		fields := slices.Sorted(maps.Keys(def["properties"].(jsonSchema)))
		if want := slices.Sorted(slices.Values(parser[name])); !slices.Equal(fields, want) {
			t.Errorf("%s: fields of the schema %q, of the parser %q", name, fields, want)
		}
	}
}

// And the lists above are all that the parser reads mappings by: a call with
// another list would be a mapping that the schema does not know.
func TestSchemaKnowsEveryMapping(t *testing.T) {
	t.Parallel()
	lists := []string{"topFields", "defaultsFields", "known", "lintFields", "entryFields", "loadFields", "httpFields", "ruleFields", "lookupFields",
		"tagsFields", "cascadeFields", "dependencyFields", "warmFields", "edgeFields", "nil"}
	call := regexp.MustCompile(`\.mapping\(\w+, [^,]+, ([^,]+),`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(source), -1) {
			calls++
			if !slices.Contains(lists, m[1]) {
				t.Errorf("%s reads a mapping by %s, which the schema does not know", name, m[1])
			}
		}
	}
	if calls < len(lists)-1 {
		t.Errorf("%d calls found, want at least %d: has mapping another name?", calls, len(lists)-1)
	}
}
