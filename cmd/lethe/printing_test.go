package main

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

// A finding is one line of GitHub's, whatever its text and its file are called:
// nothing in them ends the command, or begins another.
func TestPrintAnnotations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		finding rules.Finding
		want    string
	}{
		{rules.Finding{Code: "L010", File: "rules.yaml", Line: 12, Col: 5, Rule: "product page", Message: `column "prcie" does not exist`},
			`::error file=rules.yaml,line=12,col=5,title=L010%3A rule "product page"::column "prcie" does not exist%0Asee: docs/findings.md#l010`},
		{rules.Finding{Code: "L040", Severity: rules.Warning, File: "rules.yaml", Line: 1, Col: 1, Message: "100%\r\n::error::no", Fix: "a\nb"},
			`::warning file=rules.yaml,line=1,col=1,title=L040::100%25%0D%0A::error::no%0Afix: a%0Ab%0Asee: docs/findings.md#l040`},
		{rules.Finding{Code: "L045", Severity: rules.Warning, File: "a,b:c%\n.yaml", Entry: "x,y=1::\n", Message: "m"},
			`::warning file=a%2Cb%3Ac%25%0A.yaml,title=L045%3A entry "x%2Cy=1%3A%3A\n"::m%0Asee: docs/findings.md#l045`},
	} {
		var b strings.Builder
		if err := printAnnotations(&b, rules.Findings{c.finding}); err != nil {
			t.Fatal(err)
		}
		if b.String() != c.want+"\n" {
			t.Errorf("got  %swant %s", &b, c.want)
		}
	}
}
