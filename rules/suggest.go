package rules

import (
	"fmt"
	"strings"
)

// suggest returns ` (did you mean "x"?)` for the name nearest to what was
// written, or nothing if none is near enough to be a slip of the hand.
func suggest(got string, names []string) string {
	if name := nearest(got, names); name != "" {
		return fmt.Sprintf(" (did you mean %q?)", name)
	}
	return ""
}

// suggestTable suggests a table. Those of the schema that was written are
// compared without it, or every short name would be near to every other.
func suggestTable(schema, table string, qualified []string) string {
	var same []string
	for _, q := range qualified {
		if name, ok := strings.CutPrefix(q, schema+"."); ok {
			same = append(same, name)
		}
	}
	switch name := nearest(table, same); {
	case name != "":
		return fmt.Sprintf(" (did you mean %q?)", schema+"."+name)
	case len(same) == 0: // the slip may be in the schema
		return suggest(schema+"."+table, qualified)
	}
	return ""
}

// nearest is the name nearest to what was written, if it is near enough.
func nearest(got string, names []string) string {
	best, bestDist := "", 1+max(1, len(got)/3)
	for _, n := range names {
		if n == got {
			continue
		}
		if strings.EqualFold(n, got) {
			return n
		}
		if d := distance(got, n, bestDist); d < bestDist {
			best, bestDist = n, d
		}
	}
	return best
}

// distance is the number of edits between two names, where swapping two
// neighbours is one; it gives up at limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > 200 || len(b) > 200 {
		return limit
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return min(prev[len(b)], limit)
}
