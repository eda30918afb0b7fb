package coherence

import (
	"context"
	"math/bits"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// tableRaise is one call of the table script: cells, the fields of each, and
// what a legacy server is to unlink before.
type tableRaise struct {
	x      change.Position
	cells  []string
	fields []string
	unlink []string
	runs   []int
}

func (t *tableRaise) args(s *Store, spare string) []any {
	n := len(t.cells) + len(t.unlink)
	spared := s.legacy && scriptTable.forgets
	if spared {
		n++
	}
	out := make([]any, 0, 5+n+len(t.fields)+len(t.runs))
	out = append(out, "evalsha", s.sha(scriptTable), n)
	for i := range t.cells {
		out = append(out, &t.cells[i]) // a pointer: boxing a string would allocate
	}
	for i := range t.unlink {
		out = append(out, &t.unlink[i])
	}
	if spared {
		out = append(out, spare)
	}
	out = append(out, t.x.Append(nil), len(t.cells))
	for i := range t.fields {
		out = append(out, &t.fields[i])
	}
	for _, n := range t.runs {
		out = append(out, n)
	}
	return out
}

// raised returns the cells that the names of a part fall into, each once, and
// their fields as the script takes them.
func (s *Store) raised(part []Invalidation) (cells, fields []string) {
	if s.layout.cluster {
		var set uint64
		for i := range part {
			_, b := s.layout.cell(part[i].Name)
			set |= 1 << b
		}
		return []string{s.layout.cells[Slot(part[0].Name)]}, []string{fieldList(set)}
	}
	if s.opts.CoarseBatch > 0 && len(part) >= s.opts.CoarseBatch {
		return []string{s.layout.floor()}, []string{"0"}
	}
	var sets [BucketsSingle / BucketsPerCell]uint64
	touched := make([]int, 0, len(part))
	for i := range part {
		cell, b := s.layout.cell(part[i].Name)
		if sets[cell] == 0 {
			touched = append(touched, cell)
		}
		sets[cell] |= 1 << b
	}
	cells, fields = make([]string, len(touched)), make([]string, len(touched))
	for i, cell := range touched {
		cells[i], fields[i] = s.layout.cells[cell], fieldList(sets[cell])
	}
	return cells, fields
}

// fieldList writes a set of buckets as "3" or "3 17".
func fieldList(set uint64) string {
	if bits.OnesCount64(set) == 1 {
		return decimals[bits.TrailingZeros64(set)]
	}
	out := make([]byte, 0, 3*bits.OnesCount64(set))
	for ; set != 0; set &= set - 1 {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		out = strconv.AppendInt(out, int64(bits.TrailingZeros64(set)), 10)
	}
	return string(out)
}

// TablePosition is what the table knows of a name: the greatest X that
// invalidated something in its bucket, and whether it is closed to stamps of
// an era. It is for people and tests; the scripts ask the table themselves.
func (s *Store) TablePosition(ctx context.Context, name string, era uint16) (pos change.Position, closed bool, err error) {
	cell, field := s.layout.Cell(name)
	cmds := []*redis.SliceCmd{redis.NewSliceCmd(ctx, "hmget", cell, "base", field)}
	units := []unit{{key: cell, cmds: []redis.Cmder{cmds[0]}}}
	if floor := s.layout.floor(); floor != "" {
		cmds = append(cmds, redis.NewSliceCmd(ctx, "hmget", floor, "base", "0"))
		units[0].cmds = append(units[0].cmds, cmds[1])
	}
	if err := s.do(ctx, units); err != nil {
		return pos, false, err
	}
	for _, c := range cmds {
		for i, v := range c.Val() {
			text, ok := v.(string)
			if !ok {
				closed = closed || i == 0
				continue
			}
			p, err := change.ParsePosition(text)
			if err != nil {
				return pos, false, err
			}
			closed = closed || i == 0 && p.Era < era
			pos = pos.Max(p)
		}
	}
	return pos, closed, nil
}
