package rules

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// secret is a value that came from the environment. Findings name the variable
// instead of it: they end in logs, in readiness and in the comments of a pull
// request, where a password has nothing to do.
type secret struct{ value, written string }

// hide puts the variable's name where a text has its value.
func hide(secrets []secret, text string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s.value, s.written)
	}
	return text
}

// hideArg is hide for an argument of a format. What is no text is no secret.
func hideArg(secrets []secret, arg any) any {
	if len(secrets) == 0 {
		return arg
	}
	switch v := arg.(type) {
	case string:
		return hide(secrets, v)
	case fmt.Stringer:
		return hide(secrets, v.String())
	case error:
		return hide(secrets, v.Error())
	}
	return arg
}

// variable is one ${NAME} or ${NAME:-default}; what stands in the default is
// text up to the first brace.
var variable = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}`)

// expandAll expands variables in the scalar values under n, each node once
// however many aliases lead to it. The keys of mappings stay as they are
// written: a field or an entry that is called by the environment is one that
// nobody finds.
func (d *decoder) expandAll(n *yaml.Node, seen map[*yaml.Node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	switch n.Kind {
	case yaml.ScalarNode:
		d.expand(n)
	case yaml.AliasNode:
		d.expandAll(n.Alias, seen)
	case yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			d.expandAll(n.Content[i], seen)
		}
	default:
		for _, c := range n.Content {
			d.expandAll(c, seen)
		}
	}
}

// expand replaces the variables in one scalar. The result is text whatever it
// looks like: YAML has been read already. Only an unquoted scalar that was a
// variable and nothing else takes its type from what it became.
func (d *decoder) expand(n *yaml.Node) {
	if !strings.Contains(n.Value, "${") {
		return
	}
	written := n.Value
	var out strings.Builder
	from, whole := 0, false
	for from < len(written) {
		rest := written[from:]
		i := strings.IndexByte(rest, '$')
		if i < 0 {
			out.WriteString(rest)
			break
		}
		out.WriteString(rest[:i])
		from, rest = from+i, rest[i:]
		switch {
		case strings.HasPrefix(rest, "$${"):
			out.WriteString("${")
			from += len("$${")
		case strings.HasPrefix(rest, "${"):
			m := variable.FindStringSubmatch(rest)
			if m == nil {
				d.errorf(CodeEnvironment, d.inText(n, written, from), "%s is no variable: write ${NAME} or ${NAME:-default}, or $${ for the text ${", quoteStart(rest))
				return
			}
			value, ok := d.variable(m)
			if !ok {
				d.add(Error, CodeEnvironment, d.inText(n, written, from), "set it, or write ${"+m[1]+":-default}",
					"the environment has no %s", m[1])
				return
			}
			out.WriteString(value)
			whole = from == 0 && len(m[0]) == len(written)
			from += len(m[0])
		default:
			out.WriteByte('$')
			from++
		}
	}
	n.Value = out.String()
	if whole && n.Style == 0 {
		n.Tag = "" // typed anew, by what it says now
	}
	d.written[n] = written
}

// variable is what a match of the expression of that name stands for.
func (d *decoder) variable(m []string) (string, bool) {
	value, ok := d.env(m[1])
	if withDefault := len(m[0]) > len(m[1])+len("${}"); withDefault && value == "" {
		return m[2], true
	}
	if ok && value != "" && !strings.Contains(d.source, value) {
		s := secret{value: value, written: "${" + m[1] + "}"}
		if !slices.Contains(*d.secrets, s) {
			*d.secrets = append(*d.secrets, s)
			// The longest first, so that no part of one is left of another.
			slices.SortStableFunc(*d.secrets, func(a, b secret) int { return len(b.value) - len(a.value) })
		}
	}
	return value, ok
}

// inText is the place of an offset in a scalar's text as it is written.
func (d *decoder) inText(n *yaml.Node, written string, offset int) place {
	p := d.textPlace(n)
	if p.line > len(d.lines) || p.col-1 > len(d.lines[p.line-1]) {
		return p
	}
	if line := d.lines[p.line-1][p.col-1:]; strings.HasPrefix(line, written) {
		p.col += offset
	}
	return p
}

func quoteStart(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 30 {
		s = s[:30] + "..."
	}
	return fmt.Sprintf("%q", s)
}
