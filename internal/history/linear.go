package history

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// patience bounds the search for an order. The versions count up, so that there
// is next to nothing to search.
const patience = 30 * time.Second

// register is the state of a row: its version, and whether it is there.
type register struct {
	n      int64
	absent bool
}

// rowModel is a row that is written by counting its version up.
func rowModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return register{} },
		Step: func(state, _, output any) (bool, any) {
			s, o := state.(register), output.(Op)
			if o.Write {
				return o.N == s.n+1, register{n: o.N, absent: o.Absent}
			}
			return o.Absent == s.absent && (o.Absent || o.N == s.n), s
		},
		DescribeOperation: func(_, output any) string {
			o := output.(Op)
			return o.line(0)
		},
	}
}

// linearizable looks for an order of the writes and the reads under tokens of a
// row that agrees with their times; "" if there is one.
func (h *History) linearizable(row int, ops []Op) string {
	if h.Strict == nil || !h.Strict(row) {
		return ""
	}
	var chosen []porcupine.Operation
	for _, o := range ops {
		if o.Write || o.After && !o.composite() && !o.meets(h.Lost, 0) {
			chosen = append(chosen, porcupine.Operation{ClientId: o.Client, Call: o.Start, Return: o.End, Output: o})
		}
	}
	switch porcupine.CheckOperationsTimeout(rowModel(), chosen, patience) {
	case porcupine.Ok:
		return ""
	case porcupine.Illegal:
		return fmt.Sprintf("row %d: %d writes and reads under tokens are not linearizable%s", row, len(chosen), h.shortest(chosen))
	}
	return fmt.Sprintf("row %d: no order of %d operations was found within %v", row, len(chosen), patience)
}

// composite reads see a row through another loader, of a standby perhaps.
func (o *Op) composite() bool { return o.Kind == "list" || o.Outer != nil }

// shortest is the end of the shortest beginning that has no order: of the reads,
// since a write may be seen before one that began earlier.
func (h *History) shortest(ops []porcupine.Operation) string {
	var writes, reads []porcupine.Operation
	for _, o := range ops {
		if o.Output.(Op).Write {
			writes = append(writes, o)
		} else {
			reads = append(reads, o)
		}
	}
	n := sort.Search(len(reads), func(n int) bool {
		return porcupine.CheckOperationsTimeout(rowModel(), slices.Concat(writes, reads[:n+1]), patience) == porcupine.Illegal
	})
	if n == len(reads) {
		return ": the writes alone"
	}
	last := reads[n].Output.(Op)
	var shown []Op
	for _, o := range slices.Concat(writes, reads[:n+1]) {
		if o.Call <= last.End {
			shown = append(shown, o.Output.(Op))
		}
	}
	slices.SortFunc(shown, func(a, b Op) int { return cmp.Compare(a.Start, b.Start) })
	text, zero := "", shown[0].Start
	for _, o := range shown[max(0, len(shown)-16):] {
		text += "\n     " + o.line(zero)
	}
	return text
}
