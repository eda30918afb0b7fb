package coherence

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// seedChunk is how many cells a script looks at: its work is O(cells), and
// other clients of the server wait meanwhile.
const seedChunk = 128

// Seed opens the tables that are closed: those without base, or with one of an
// older era than the source record's. In three steps, so that a table which is
// lost again meanwhile, or that another worker seeds, stays closed: it leaves
// a random mark, then asks for the primary's insert LSN, then sets base to the
// bound of that LSN where the mark is still its own.
//
// insert is called at most once, after the first step; Seed makes the bound.
// The cells that were given a base are counted. ErrNoSource if there is no
// source record.
func (s *Store) Seed(ctx context.Context, insert func(context.Context) (change.Position, error)) (seeded int, err error) {
	src, err := s.Source(ctx)
	if err != nil {
		return 0, fmt.Errorf("seed tables: %w", err)
	}
	if src.Era == 0 {
		return 0, fmt.Errorf("seed tables: %w", ErrNoSource)
	}
	mark := randomID()
	marked, err := s.seedMark(ctx, mark, src.Era)
	if err != nil || len(marked) == 0 {
		return 0, err
	}
	p, err := insert(ctx)
	if err != nil {
		return 0, fmt.Errorf("seed tables: read insert LSN: %w", err)
	}
	if p.Era != src.Era {
		return 0, fmt.Errorf("seed tables: insert LSN of era %d, recorded is %d", p.Era, src.Era)
	}
	return s.seedBase(ctx, mark, marked, change.Position{Era: p.Era, LSN: change.Bound(p.LSN)})
}

// seedMark is step 1. It returns the numbers of the cells it marked.
func (s *Store) seedMark(ctx context.Context, mark string, era uint16) ([]int, error) {
	cells := make([]int, len(s.layout.cells))
	for i := range cells {
		cells[i] = i
	}
	chunks := s.chunks(cells)
	units := make([]unit, len(chunks))
	for i, chunk := range chunks {
		keys := s.cellKeys(chunk)
		units[i] = unit{key: keys[0], cmds: []redis.Cmder{redis.NewSliceCmd(ctx,
			s.evalArgs(scriptSeedMark, s.cellSpare(chunk[0]), keys, mark, change.Position{Era: era}.Append(nil)[:4])...)}}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("seed tables: %w", err)
	}
	var marked []int
	for i, chunk := range chunks {
		for _, at := range units[i].cmds[0].(*redis.SliceCmd).Val() {
			if n, ok := at.(int64); ok && n >= 1 && int(n) <= len(chunk) {
				marked = append(marked, chunk[n-1])
			}
		}
	}
	return marked, nil
}

// seedBase is step 3.
func (s *Store) seedBase(ctx context.Context, mark string, marked []int, bound change.Position) (seeded int, err error) {
	chunks := s.chunks(marked)
	units := make([]unit, len(chunks))
	for i, chunk := range chunks {
		keys := s.cellKeys(chunk)
		units[i] = unit{key: keys[0], cmds: []redis.Cmder{redis.NewIntCmd(ctx,
			s.evalArgs(scriptSeed, s.cellSpare(chunk[0]), keys, mark, bound.Append(nil))...)}}
	}
	if err := s.do(ctx, units); err != nil {
		return 0, fmt.Errorf("seed tables: %w", err)
	}
	for _, u := range units {
		seeded += int(u.cmds[0].(*redis.IntCmd).Val())
	}
	return seeded, nil
}

// chunks divides cells for scripts: by slot in Cluster.
func (s *Store) chunks(cells []int) [][]int {
	size := seedChunk
	if s.layout.cluster {
		size = 1
	}
	out := make([][]int, 0, len(cells)/size+1)
	for len(cells) > 0 {
		n := min(size, len(cells))
		out, cells = append(out, cells[:n]), cells[n:]
	}
	return out
}

func (s *Store) cellKeys(cells []int) []string {
	keys := make([]string, len(cells))
	for i, c := range cells {
		keys[i] = s.layout.cells[c]
	}
	return keys
}

// cellSpare is a key in the slot of a cell that never holds anything.
func (s *Store) cellSpare(cell int) string { return s.layout.cells[cell] + ":spare" }
