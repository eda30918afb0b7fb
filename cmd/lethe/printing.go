package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/lethe-cache/lethe/rules"
)

// printFindings writes each finding on a line, its cure and its page below it.
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
		fmt.Fprintf(w, "    see: %s\n", f.Page())
	}
}

// The escapes of GitHub's workflow commands: a message ends at the end of its
// line, a property also at a comma, and its name at a colon.
var (
	annotationText     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	annotationProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

// printAnnotations writes each finding as a command that GitHub shows at its
// line in a pull request.
func printAnnotations(w io.Writer, findings rules.Findings) error {
	for _, f := range findings {
		at := "file=" + annotationProperty.Replace(f.File)
		if f.Line > 0 {
			at += fmt.Sprintf(",line=%d,col=%d", f.Line, f.Col)
		}
		title := f.Code
		switch {
		case f.Rule != "":
			title = fmt.Sprintf("%s: rule %q", f.Code, f.Rule)
		case f.Entry != "":
			title = fmt.Sprintf("%s: entry %q", f.Code, f.Entry)
		}
		message := f.Message
		if f.Fix != "" {
			message += "\nfix: " + f.Fix
		}
		message += "\nsee: " + f.Page()
		if _, err := fmt.Fprintf(w, "::%s %s,title=%s::%s\n", f.Severity, at, annotationProperty.Replace(title), annotationText.Replace(message)); err != nil {
			return err
		}
	}
	return nil
}

// printJSON writes a value as a command's output, conditions as they are
// written: && and < are not escaped.
func (p *program) printJSON(v any) error {
	encoder := json.NewEncoder(p.stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}
