package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/internal/diagram"
	"github.com/lethe-cache/lethe/rules"
)

func (p *program) graphCommand() *cobra.Command {
	var output, file string
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the rules: tables, rules, entries and tags, and what depends on them",
		Long: `Draws which tables lead by which rules to which entries and tags, who carries
those tags, and what depends on them; dashed, what lethe graph add has declared in
LETHE_POSTGRES_URL, if that is set. Exit code 3 if the rules are not valid.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			formats := map[string]func(*diagram.Graph, io.Writer) error{
				"svg": (*diagram.Graph).SVG, "mermaid": (*diagram.Graph).Mermaid, "dot": (*diagram.Graph).DOT,
			}
			write, ok := formats[output]
			if !ok {
				return usagef("-o %s: want svg, mermaid or dot", output)
			}
			if err := p.settings.validate(false); err != nil {
				return err
			}
			set, err := p.loadRules()
			if err != nil {
				return err
			}
			if p.settings.PostgresURL != "" {
				with, problems, err := p.declaredEdges(cmd.Context(), set)
				if err != nil { // a picture of the rest is worth something too
					fmt.Fprintln(p.stderr, "without declared dependencies:", err)
				} else {
					set = with
				}
				for _, problem := range problems {
					fmt.Fprintln(p.stderr, "warning:", problem)
				}
			}
			g := drawRules(set)
			if file == "" {
				return write(g, p.stdout)
			}
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			if err := write(g, f); err != nil {
				_ = f.Close()
				return err
			}
			return f.Close()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "svg", "svg, mermaid or dot")
	cmd.Flags().StringVar(&file, "file", "", "write there instead of to standard output")
	cmd.AddCommand(p.graphAddCommand(), p.graphRemoveCommand(), p.graphListCommand())
	return cmd
}

// drawnMax is how many declared dependencies are drawn.
const drawnMax = 500

// drawRules is the graph of a rule set.
func drawRules(set *rules.Set) *diagram.Graph {
	g := &diagram.Graph{}
	for _, r := range set.Rules {
		detail := r.When
		if action := r.Action; action != rules.Delete {
			detail = strings.TrimSpace(action.String() + " " + detail)
		}
		if r.Lookup != nil {
			detail = strings.TrimSpace("lookup: " + r.Lookup.SQL + " " + detail)
		}
		table := g.Node(diagram.Node{Kind: diagram.Table, Label: r.QualifiedTable()})
		rule := g.Node(diagram.Node{Kind: diagram.Rule, Label: r.Name, Detail: oneLine(detail)})
		on := ""
		if r.On != rules.OnAll {
			on = r.On.String()
		}
		g.Edge(table, rule, on)
		for _, k := range r.Keys {
			g.Edge(rule, drawName(g, set, k, true), "")
		}
		for _, tags := range r.Tags {
			label := ""
			if len(tags.All) > 1 {
				label = "all"
			}
			for _, t := range tags.All {
				g.Edge(rule, drawName(g, set, t, false), label)
			}
		}
	}
	for _, c := range set.Entries {
		entry := drawClass(g, c)
		for _, t := range c.Tags {
			g.Edge(drawName(g, set, t, false), entry, "")
		}
	}
	drawn := 0
	for _, d := range set.Dependencies {
		if d.ID != 0 {
			if drawn++; drawn > drawnMax {
				g.Node(diagram.Node{Kind: diagram.Tag, Label: "...", Detail: "more are declared than can be drawn"})
				break
			}
		}
		of := drawName(g, set, d.Of, d.Of.Class != nil)
		for _, a := range d.Also {
			to, label := drawName(g, set, a, a.Class != nil), oneLine(d.When)
			if d.Of.Class != nil && d.Of.Pattern().Placeholders() == 0 { // one name of a class
				label = oneLine(strings.TrimSpace(d.Of.String() + " " + label))
			}
			if d.ID != 0 {
				g.DashedEdge(of, to, label)
			} else {
				g.Edge(of, to, label)
			}
		}
	}
	return g
}

// drawName is the node of a name: its class's if it is a key of one.
func drawName(g *diagram.Graph, set *rules.Set, t *rules.Template, key bool) int {
	if t.Class != nil {
		return drawClass(g, t.Class)
	}
	if key && !set.TagForm(t) {
		return g.Node(diagram.Node{Kind: diagram.Entry, Label: t.String(), Detail: "no class"})
	}
	// Tags of one form are one, whatever their columns are called.
	for _, c := range set.Entries {
		for _, declared := range c.Tags {
			if declared.Pattern().Shape() == t.Pattern().Shape() {
				return g.Node(diagram.Node{Kind: diagram.Tag, Label: declared.String()})
			}
		}
	}
	return g.Node(diagram.Node{Kind: diagram.Tag, Label: t.String()})
}

func drawClass(g *diagram.Graph, c *rules.Class) int {
	return g.Node(diagram.Node{Kind: diagram.Entry, Label: c.Name, Detail: c.Key.String()})
}

// oneLine is a condition as a label: without line ends, and not too long.
func oneLine(s string) string {
	const most = 60
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) > most {
		return string(r[:most]) + "..."
	}
	return string(r)
}
