package rules_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

// Every code has its page, with all that a page is for, and docs/rules.md lists
// it; a page without a code is one that nobody comes to.
func TestEveryCodeHasAPage(t *testing.T) {
	t.Parallel()
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	var codes []string
	for _, m := range regexp.MustCompile(`= "(L\d{3})" //`).FindAllStringSubmatch(read("codes.go"), -1) {
		codes = append(codes, m[1])
	}
	if len(codes) < 38 || len(slices.Compact(slices.Sorted(slices.Values(codes)))) != len(codes) {
		t.Fatalf("%d codes in codes.go, or one of them twice: %q", len(codes), codes)
	}
	list := strings.Fields(read("../docs/rules.md"))
	sections := map[string]string{}
	for _, s := range strings.Split(read("../docs/findings.md"), "\n### ")[1:] {
		code, text, _ := strings.Cut(s, "\n")
		sections[code] = text
		if !slices.Contains(codes, code) {
			t.Errorf("findings.md has a section %q, which is no code", code)
		}
	}
	for _, code := range codes {
		if want := "docs/findings.md#" + strings.ToLower(code); (rules.Finding{Code: code}).Page() != want {
			t.Errorf("page of %s is not %s", code, want)
		}
		for _, part := range []string{"**", "\n- Damage: ", "\n- Cure: ", "\n```yaml\n"} {
			if !strings.Contains(sections[code], part) {
				t.Errorf("findings.md, section %s: no %q", code, part)
			}
		}
		if !slices.Contains(list, code) {
			t.Errorf("rules.md does not list %s", code)
		}
	}
}
