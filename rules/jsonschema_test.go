package rules_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/rules"
)

const schemaFile = "../rules.schema.json"

// The file that editors read is what the grammar says.
func TestJSONSchemaFile(t *testing.T) {
	t.Parallel()
	if *update {
		if err := os.WriteFile(schemaFile, rules.JSONSchema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, rules.JSONSchema()) {
		t.Errorf("%s is not what rules.JSONSchema returns: run go generate .", schemaFile)
	}
}

// notStructural are bad files whose mistakes of codes L002 to L004 no schema
// tells, and why.
var notStructural = map[string]string{
	"environment_secret.bad": "the environment decides",
	"nothing_to_do.bad":      "files that include others may be empty",
	"plain_keep.bad":         "two fields that contradict each other",
	"table_form.bad":         "how Postgres writes names",
	"version_missing.bad":    "included files state no version",
}

// What the parser accepts the schema accepts; what it refuses for its structure
// the schema refuses.
func TestJSONSchemaAgreesWithTheParser(t *testing.T) {
	t.Parallel()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(rules.JSONSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("rules.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("rules.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, path := range append(files, "../rules.yaml") {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var value any
		if yaml.Unmarshal(data, &value) != nil {
			continue // the parser's business: an editor sees it by itself
		}
		invalid := schema.Validate(value)
		if !strings.HasSuffix(name, ".bad") {
			if invalid != nil {
				t.Errorf("%s: %v", name, invalid)
			}
			continue
		}
		_, err = rules.Options{Env: testEnv}.Load(path)
		var fs rules.Findings
		if err == nil || !errors.As(err, &fs) {
			continue // the live schema has something against it
		}
		structural := slices.ContainsFunc(fs, func(f rules.Finding) bool {
			return f.File == path && slices.Contains([]string{rules.CodeUnknownField, rules.CodeMissing, rules.CodeValue}, f.Code)
		})
		_, excepted := notStructural[name]
		switch {
		case structural && !excepted && invalid == nil:
			t.Errorf("%s: the schema accepts what the parser refuses:\n%s", name, fs)
		case excepted && invalid != nil:
			t.Errorf("%s: is no exception any more: %v", name, invalid)
		}
		if invalid != nil {
			refused++
		}
	}
	if refused < 25 {
		t.Errorf("the schema refuses %d bad files, want at least 25", refused)
	}
}
