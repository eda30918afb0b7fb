package main

import (
	"fmt"
	"io"

	"github.com/lethe-cache/lethe/rules"
)

// printFindings writes each finding on a line, its cure below it.
func printFindings(w io.Writer, findings rules.Findings) {
	for _, f := range findings {
		mark := ""
		if f.Severity == rules.Warning {
			mark = "warning: "
		}
		fmt.Fprintf(w, "%s%s [%s]\n", mark, f.String(), f.Code)
		if f.Fix != "" {
			fmt.Fprintf(w, "    fix: %s\n", f.Fix)
		}
	}
}
