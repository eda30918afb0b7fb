package coherence

import (
	"context"
	"errors"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

func TestTableClosedWithoutBase(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onRedis, onLegacy, onMini} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := open(t, kind, Options{})
			_, err := b.SetSource(b.ctx(), change.Source{Era: testEra, SystemID: 7, Timeline: 1})
			must(t, err)
			k, tag := b.name("product:1"), b.name("category:7")
			standby := func() Reason {
				return b.fill(FillRequest{Ticket: b.begin(k, known(1)).Ticket, Standby: true, Stamp: at(1000)})
			}
			check := func(when string, fill, register Reason) {
				t.Helper()
				if got := standby(); got != fill {
					t.Errorf("%s: standby fill %v, want %v", when, got, fill)
				}
				if got := b.register(tag, k, 1000); got != register {
					t.Errorf("%s: register %v, want %v", when, got, register)
				}
			}
			check("without table", RefusedClosed, RefusedClosed)
			// A raise is recorded, and opens nothing.
			b.invalidate(Invalidation{Name: k, X: at(1000)}, Invalidation{Name: tag, X: at(2000)})
			check("raised without base", RefusedClosed, RefusedClosed)
			if got := b.fill(FillRequest{Ticket: b.begin(k, known(1)).Ticket}); got != Stored {
				t.Errorf("the primary's readers do not need the table: %v", got)
			}
			// What was recorded counts once there is a base.
			if n := b.seed(500); n != BucketsSingle/BucketsPerCell+1 {
				t.Errorf("seeded %d cells, want all", n)
			}
			check("seeded", RefusedTable, RefusedTable)
			if n := b.seed(900_000); n != 0 {
				t.Errorf("seeded %d cells again", n)
			}
			// The floor is part of it.
			if got := b.register(b.name("other"), k, 1000); got != Stored {
				t.Errorf("register under another tag: %v", got)
			}
			must(t, b.rdb.Del(b.ctx(), b.Layout().floor()).Err())
			free := b.name("free") // nothing has raised its bucket
			if got := b.fill(FillRequest{Ticket: b.begin(free, known(1)).Ticket, Standby: true, Stamp: at(1000)}); got != RefusedClosed {
				t.Errorf("standby fill without floor: %v, want closed", got)
			}
			if got := b.register(free, k, 1000); got != RefusedClosed {
				t.Errorf("register without floor: %v, want closed", got)
			}
			b.seed(500)
			check("floor seeded", RefusedTable, RefusedTable)
			// A cell that was evicted is closed, the others are not.
			cell, _ := b.Layout().Cell(k)
			must(t, b.rdb.Del(b.ctx(), cell).Err())
			if got := standby(); got != RefusedClosed {
				t.Errorf("evicted cell: %v", got)
			}
			if n := b.seed(3000); n != 1 {
				t.Errorf("seeded %d cells, want 1", n)
			}
			if got := standby(); got != RefusedTable {
				t.Errorf("seeded at 3000: %v, want table", got)
			}
		})
	}
}

// A new era closes every table until it is seeded again.
func TestTableOfOlderEraIsClosed(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		_, err := b.SetSource(b.ctx(), change.Source{Era: testEra + 1, SystemID: 7, Timeline: 2})
		must(t, err)
		k := b.name("product:1")
		now := Known{Source: change.Source{Era: testEra + 1, SystemID: 7, Timeline: 2}}
		stamp := change.Position{Era: testEra + 1, LSN: 5}
		fill := func() Reason {
			return b.fill(FillRequest{Ticket: b.begin(k, now).Ticket, Standby: true, Stamp: stamp})
		}
		if got := fill(); got != RefusedClosed {
			t.Errorf("standby fill: %v, want closed", got)
		}
		got, err := b.Register(b.ctx(), RegisterRequest{Name: b.name("t"), Member: k, Stamp: stamp})
		if must(t, err); got != RefusedClosed {
			t.Errorf("register: %v, want closed", got)
		}
		// A slow worker of the old era can not open them.
		if _, err := b.Seed(b.ctx(), func(context.Context) (change.Position, error) { return at(1 << 40), nil }); err == nil {
			t.Error("seeded with a position of the old era")
		}
		if got := fill(); got != RefusedClosed {
			t.Errorf("standby fill: %v, want closed", got)
		}
		_, err = b.Seed(b.ctx(), func(context.Context) (change.Position, error) {
			return change.Position{Era: testEra + 1, LSN: 41}, nil
		})
		must(t, err)
		if got := fill(); got != Stored {
			t.Errorf("standby fill: %v, want stored", got)
		}
	})
}

// A worker that pauses between reading the insert LSN and setting base: the
// table is lost meanwhile, or another worker begins to seed.
func TestSeedRace(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		cell, field := b.Layout().Cell(k)
		drop := func() { must(t, b.rdb.Del(b.ctx(), cell).Err()) }
		drop()
		n, err := b.Seed(b.ctx(), func(ctx context.Context) (change.Position, error) {
			// After this LSN was read: X is applied, and then lost with the table.
			b.invalidate(Invalidation{Name: k, X: at(700)})
			drop()
			return at(600), nil
		})
		must(t, err)
		if n != 0 {
			t.Errorf("seeded %d cells that were lost meanwhile", n)
		}
		if _, closed := b.position(k); !closed {
			t.Error("a paused worker's seed opened a table that had forgotten 700")
		}
		// Another worker's mark is not ours either.
		n, err = b.Seed(b.ctx(), func(ctx context.Context) (change.Position, error) {
			if got := b.seed(800); got != 1 {
				t.Errorf("the other worker seeded %d", got)
			}
			return at(600), nil
		})
		must(t, err)
		if n != 0 || b.rdb.HGet(b.ctx(), cell, "base").Val() != at(760).String() {
			t.Errorf("seeded %d; base %v, want the other worker's", n, b.rdb.HGet(b.ctx(), cell, "base").Val())
		}
		if b.rdb.HExists(b.ctx(), cell, "seed").Val() {
			t.Error("a mark is left")
		}
		_ = field
	})
}

func TestSeedNeedsSource(t *testing.T) {
	t.Parallel()
	b := open(t, onMini, Options{})
	_, err := b.Seed(b.ctx(), func(context.Context) (change.Position, error) {
		t.Error("asked for the insert LSN")
		return change.Position{}, nil
	})
	if !errors.Is(err, ErrNoSource) {
		t.Errorf("error %v, want ErrNoSource", err)
	}
}
