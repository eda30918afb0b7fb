package diagram

import (
	"fmt"
	"io"
	"strings"
)

// Mermaid writes the graph as the source of a Mermaid flow chart.
func (g *Graph) Mermaid(w io.Writer) error {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	shapes := [...][2]string{Table: {"[(", ")]"}, Rule: {"[", "]"}, Entry: {"(", ")"}, Tag: {"{{", "}}"}}
	for i, n := range g.nodes {
		text := mermaidText(n.Label)
		if n.Detail != "" {
			text += "<br/>" + mermaidText(n.Detail)
		}
		s := shapes[n.Kind]
		fmt.Fprintf(&b, "  n%d%s\"%s\"%s:::%s\n", i, s[0], text, s[1], kindNames[n.Kind])
	}
	for _, e := range g.edges {
		line := "-->"
		if e.dashed {
			line = "-.->"
		}
		if e.label != "" {
			fmt.Fprintf(&b, "  n%d %s|\"%s\"| n%d\n", e.from, line, mermaidText(e.label), e.to)
		} else {
			fmt.Fprintf(&b, "  n%d %s n%d\n", e.from, line, e.to)
		}
	}
	b.WriteString("  classDef table fill:#ddf4ff,stroke:#0969da\n  classDef rule fill:#fff8c5,stroke:#9a6700\n" +
		"  classDef entry fill:#dafbe1,stroke:#1a7f37\n  classDef tag fill:#fbefff,stroke:#8250df\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// mermaidText escapes what Mermaid would take for its own, by its entities.
func mermaidText(s string) string {
	return strings.NewReplacer("#", "#35;", `"`, "#quot;", "<", "#lt;", ">", "#gt;", "`", "#96;").Replace(s)
}

// DOT writes the graph as the source of a Graphviz graph.
func (g *Graph) DOT(w io.Writer) error {
	var b strings.Builder
	b.WriteString("digraph lethe {\n  rankdir=LR;\n  node [fontname=\"monospace\", fontsize=11, style=filled];\n")
	looks := [...]string{Table: `shape=cylinder, fillcolor="#ddf4ff"`, Rule: `shape=box, fillcolor="#fff8c5"`, Entry: `shape=box, style="filled,rounded", fillcolor="#dafbe1"`, Tag: `shape=hexagon, fillcolor="#fbefff"`}
	for i, n := range g.nodes {
		text := n.Label
		if n.Detail != "" {
			text += "\n" + n.Detail
		}
		fmt.Fprintf(&b, "  n%d [label=%s, %s];\n", i, dotText(text), looks[n.Kind])
	}
	for _, e := range g.edges {
		var looks []string
		if e.label != "" {
			looks = append(looks, "label="+dotText(e.label))
		}
		if e.dashed {
			looks = append(looks, "style=dashed")
		}
		fmt.Fprintf(&b, "  n%d -> n%d", e.from, e.to)
		if len(looks) > 0 {
			fmt.Fprintf(&b, " [%s]", strings.Join(looks, ", "))
		}
		b.WriteString(";\n")
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func dotText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
