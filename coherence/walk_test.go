package coherence

import (
	"testing"
)

// A raise reaches plain values by a walk, which takes tickets as well: a
// reader who began before the raise must not fill after it.
func TestPlainRaiseWalks(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		var gone, stay []string
		var tickets []Ticket
		for _, rendered := range []string{"page:1", "page:{7}", "page:a}b", "page:x:y"} {
			k := b.name("%s", rendered)
			must(t, b.rdb.Set(b.ctx(), k, "raw", 0).Err())
			gone = append(gone, k)
			ticket := b.name("%s:only", rendered) // in flight, no value yet
			begun, err := b.Begin(b.ctx(), BeginRequest{Name: ticket, Known: known(1), Plain: true})
			must(t, err)
			tickets = append(tickets, begun.Ticket)
		}
		must(t, b.rdb.SAdd(b.ctx(), b.name("page:set"), "any type").Err())
		gone = append(gone, b.name("page:set"))
		stay = append(stay, b.name("other:1"), "x"+b.name("page:1"))
		for _, k := range stay {
			must(t, b.rdb.Set(b.ctx(), k, "raw", 0).Err())
		}
		b.raise("cause", "page")
		record := b.Layout().Control("class:page")

		calls, last := 0, 0
		must(t, b.Walk(b.ctx(), []string{b.name("page:*")}, func(scanned, unlinked int) { calls, last = calls+1, unlinked }))
		for _, k := range gone {
			if b.rdb.Exists(b.ctx(), k).Val() != 0 {
				t.Errorf("%q is left", k)
			}
		}
		for _, ticket := range tickets {
			if got := b.fill(FillRequest{Ticket: ticket, Payload: []byte("old")}); got != RefusedAbsent {
				t.Errorf("fill of %q with a ticket of before the walk: %v", ticket.Name, got)
			}
		}
		for _, k := range append(stay, record) {
			if b.rdb.Exists(b.ctx(), k).Val() != 1 {
				t.Errorf("%q is gone", k)
			}
		}
		if want := len(gone) + len(tickets); calls == 0 || last != want {
			t.Errorf("%d calls of progress, %d unlinked, want %d", calls, last, want)
		}
	})
}

// Names without wildcards are unlinked with their tickets, and not looked for:
// there may be very many, and each would cost a scan of everything.
func TestWalkOfNames(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		var patterns []string
		for _, rendered := range []string{"page:1", "page:{7}", `a\*b[c`, `a*b[c`} {
			must(t, b.rdb.Set(b.ctx(), b.name("%s", rendered), "raw", 0).Err())
		}
		for i := range 2500 {
			patterns = append(patterns, b.name("none:%d", i))
		}
		ticket, err := b.Begin(b.ctx(), BeginRequest{Name: b.name("page:9"), Known: known(1), Plain: true})
		must(t, err)
		must(t, b.rdb.Set(b.ctx(), b.name("page:11"), "raw", 0).Err())
		patterns = append(patterns, b.name("page:1"), b.name("page:{7}"), b.name("page:9"), b.name(`a\*b\[c`))
		scanned, unlinked := -1, 0
		must(t, b.Walk(b.ctx(), patterns, func(s, u int) { scanned, unlinked = s, u }))
		if scanned != 0 || unlinked != 4 {
			t.Errorf("%d keys were looked at and %d unlinked, want 0 and 4", scanned, unlinked)
		}
		if got := b.fill(FillRequest{Ticket: ticket.Ticket, Payload: []byte("old")}); got != RefusedAbsent {
			t.Errorf("fill with a ticket of before: %v", got)
		}
		for name, want := range map[string]int64{"page:1": 0, "page:{7}": 0, "a*b[c": 0, "page:11": 1, `a\*b[c`: 1} {
			if got := b.rdb.Exists(b.ctx(), b.name("%s", name)).Val(); got != want {
				t.Errorf("%q: %d, want %d", name, got, want)
			}
		}
	})
}

// Lethe's own keys survive a pattern that matches everything.
func TestWalkSparesControl(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onMini, Options{}))
	must(t, b.rdb.Set(b.ctx(), "anything", "raw", 0).Err())
	must(t, b.Walk(b.ctx(), []string{"*"}, nil))
	if b.rdb.Exists(b.ctx(), "anything").Val() != 0 {
		t.Error("a key is left")
	}
	if got := b.control(); got.Source.Era != testEra {
		t.Errorf("control %+v", got)
	}
	if _, closed := b.position("k"); closed {
		t.Error("the table is gone")
	}
}

// A fill with a ticket of before the raise, which the walk has not come to, is
// undone by it, whenever it comes.
func TestPlainFillDuringWalk(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		var tickets []Ticket
		for _, rendered := range []string{"page:1", "page:{7}", "page:a}b", "page:{7}:t"} {
			begun, err := b.Begin(b.ctx(), BeginRequest{Name: b.name("%s", rendered), Known: known(1), Plain: true})
			must(t, err)
			tickets = append(tickets, begun.Ticket)
		}
		b.raise("cause", "page")
		stored := 0
		must(t, b.Walk(b.ctx(), []string{b.name("page:*")}, func(int, int) {
			for _, ticket := range tickets {
				if b.fill(FillRequest{Ticket: ticket, Payload: []byte("old")}) == Stored {
					stored++
				}
			}
		}))
		t.Logf("%d fills were stored meanwhile", stored)
		for _, ticket := range tickets {
			if b.rdb.Exists(b.ctx(), ticket.Name).Val() != 0 {
				t.Errorf("%q is left", ticket.Name)
			}
		}
	})
}
