package coherence

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// A reader that began before the invalidation is refused, whatever the
// invalidation did to the entry.
func TestFillRefusedAfterUnlink(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		slow := b.begin(k, known(100))
		if !slow.Mine {
			t.Fatal("the entry was not absent")
		}
		b.invalidate(Invalidation{Name: k, X: at(200), Action: ActionDelete})
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != RefusedAbsent {
			t.Errorf("late fill of an absent entry: %v, want absent", got)
		}
		// The same with another reader's ticket in place.
		fresh := b.begin(k, known(300))
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != RefusedIncarnation {
			t.Errorf("late fill beside another ticket: %v, want incarnation", got)
		}
		if got := b.fill(FillRequest{Ticket: fresh.Ticket, Payload: []byte("new")}); got != Stored {
			t.Errorf("fresh fill: %v, want stored", got)
		}
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != RefusedIncarnation {
			t.Errorf("late fill over a value: %v, want incarnation", got)
		}
	})
}

func TestFillRefusedAfterKeep(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.put(k, 150)
		refresh := b.begin(k, known(100)) // a slow refresher, older than the value
		if refresh.Mine || refresh.Header.State != StateValue || string(refresh.Payload) != "value" {
			t.Fatalf("begin over a value: %+v", refresh)
		}
		if got := b.invalidate(Invalidation{Name: k, X: at(120), Action: ActionKeep}); got.Kept != 1 {
			t.Fatalf("keep: %+v", got)
		}
		if got := b.fill(FillRequest{Ticket: refresh.Ticket, Payload: []byte("misses 120")}); got != RefusedIncarnation {
			t.Errorf("late fill: %v, want incarnation", got)
		}
		if got := b.state(k); got != "V" {
			t.Errorf("kept value is %q now", got)
		}
	})
}

func TestFillRefusedAfterStale(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.put(k, 100)
		refresh := b.begin(k, known(100))
		if got := b.invalidate(Invalidation{Name: k, X: at(120), Action: ActionStale}); got.Stale != 1 {
			t.Fatalf("stale: %+v", got)
		}
		first := b.header(k)
		if first.State != StateStale || first.StaleSince == 0 {
			t.Fatalf("after stale: %+v", first)
		}
		if got := b.fill(FillRequest{Ticket: refresh.Ticket, Payload: []byte("misses 120")}); got != RefusedIncarnation {
			t.Errorf("late fill: %v, want incarnation", got)
		}
		// A reader that begins on the stale value is stopped by the next one,
		// which leaves the first time in place.
		refresh = b.begin(k, known(125))
		b.invalidate(Invalidation{Name: k, X: at(130), Action: ActionStale})
		if got := b.fill(FillRequest{Ticket: refresh.Ticket, Payload: []byte("misses 130")}); got != RefusedIncarnation {
			t.Errorf("late fill over a stale value: %v, want incarnation", got)
		}
		if second := b.header(k); second.StaleSince != first.StaleSince {
			t.Errorf("staleSince moved from %d to %d", first.StaleSince, second.StaleSince)
		}
		refresh = b.begin(k, known(140))
		if got := b.fill(FillRequest{Ticket: refresh.Ticket, Payload: []byte("new")}); got != Stored {
			t.Errorf("fill over a stale value: %v, want stored", got)
		}
		if h := b.header(k); h.State != StateValue || h.StaleSince != 0 {
			t.Errorf("after the fill: %+v", h)
		}
	})
}

func TestFillRefusedAfterExpiry(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		slow := b.begin(k, known(100))
		// What the server does when 60 seconds are over.
		if ttl := b.rdb.PTTL(b.ctx(), k).Val(); ttl <= 0 || ttl > EmptyLife {
			t.Fatalf("the empty entry lives %v, want at most %v", ttl, EmptyLife)
		}
		if b.mini != nil {
			b.mini.FastForward(EmptyLife)
		} else {
			must(t, b.rdb.PExpireAt(b.ctx(), k, time.Unix(1, 0)).Err())
		}
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != RefusedAbsent {
			t.Errorf("fill after the ticket's life: %v, want absent", got)
		}
	})
}

// commands counts what is sent to a server.
type commands struct {
	names     []string
	pipelines int
	first     []any // the first command of the first pipeline
}

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.names = append(c.names, cmd.Name())
		return next(ctx, cmd)
	}
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if c.pipelines++; c.first == nil {
			c.first = cmds[0].Args()
		}
		for _, cmd := range cmds {
			c.names = append(c.names, cmd.Name())
		}
		return next(ctx, cmds)
	}
}

// Were it two (GET, then SET) a value could be overwritten by an empty entry,
// or two readers hold the same right.
func TestBeginIsOneCommand(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{onRedis, onLegacy, onMini} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b := seeded(open(t, kind, Options{}))
			b.begin(b.name("warm"), known(1)) // scripts are loaded, the connection made
			var c commands
			b.rdb.AddHook(&c)
			k := b.name("product:1")
			first, second := b.begin(k, known(1)), b.begin(k, known(1))
			if len(c.names) != 2 {
				t.Errorf("two begins took the commands %v", c.names)
			}
			if !first.Mine || second.Mine {
				t.Errorf("mine: %v, %v, want true, false", first.Mine, second.Mine)
			}
			if first.Ticket.Incarnation != second.Ticket.Incarnation {
				t.Error("two readers of one empty entry hold different tickets")
			}
		})
	}
}

func TestBeginUnlinksWhatIsNoEntry(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		list, raw := b.name("list"), b.name("raw")
		must(t, b.rdb.LPush(b.ctx(), list, "x").Err())
		must(t, b.rdb.Set(b.ctx(), raw, "a raw value", 0).Err())
		got, err := b.BeginAll(b.ctx(), []BeginRequest{{Name: list, Known: known(1)}, {Name: raw, Known: known(1)}})
		must(t, err)
		for i, g := range got {
			if !g.Mine {
				t.Errorf("request %d: not mine", i)
			}
		}
		if b.Foreign() != 2 {
			t.Errorf("Foreign() = %d, want 2", b.Foreign())
		}
	})
}

func TestBeginCarriesLease(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		lease := Lease{Holder: [8]byte{1, 2, 3}, Until: 12345}
		_, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(1), Lease: lease})
		must(t, err)
		second := b.begin(k, known(1))
		if second.Header.Lease != lease {
			t.Errorf("lease %+v, want %+v", second.Header.Lease, lease)
		}
		if got := b.fill(FillRequest{Ticket: second.Ticket}); got != Stored {
			t.Errorf("fill beside a lease: %v", got)
		}
	})
}

// The generation of a value is the one its reader knew when it began. One
// learned later would hide that the value was read before the raise.
func TestGenerationAtBegin(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.raise("first", "product")
		before := b.control("product").Known("product")
		before.V = at(100)
		slow := b.begin(k, before)
		b.raise("second", "product")
		after := b.control("product").Known("product")
		if after.Generation <= before.Generation {
			t.Fatalf("generation %d after %d", after.Generation, before.Generation)
		}
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != Stored {
			t.Fatalf("fill: %v", got)
		}
		if got := b.header(k).Generation; got != before.Generation {
			t.Errorf("the value has generation %d, want %d of its BEGIN", got, before.Generation)
		}
		// It is no hit any more; who begins on it now replaces it, and the slow
		// reader's second try does not come back over the new value.
		fresh := b.begin(k, after)
		if got := b.fill(FillRequest{Ticket: fresh.Ticket, Payload: []byte("new")}); got != Stored {
			t.Fatalf("fill: %v", got)
		}
		if got := b.fill(FillRequest{Ticket: slow.Ticket, Payload: []byte("old")}); got != RefusedGeneration {
			t.Errorf("fill of an older generation: %v, want generation", got)
		}
	})
}

func TestStandbyRefusedBehindTable(t *testing.T) {
	t.Parallel()
	for _, coarse := range []int{-1, 1} {
		everywhereWith(t, Options{CoarseBatch: coarse}, func(t *testing.T, b *bench) {
			k := b.name("product:1")
			b.invalidate(Invalidation{Name: k, X: at(200), Action: ActionDelete})
			standby := func(stamp uint64) Reason {
				return b.fill(FillRequest{Ticket: b.begin(k, known(100)).Ticket, Standby: true, Stamp: at(stamp)})
			}
			for _, c := range []struct {
				stamp uint64
				want  Reason
			}{{10, RefusedTable}, {199, RefusedTable}, {200, RefusedTable}, {201, Stored}} {
				if got := standby(c.stamp); got != c.want {
					t.Errorf("standby at %d behind X = 200: %v, want %v", c.stamp, got, c.want)
				}
			}
		})
	}
}

// A reader of the primary needs no stamp: its ticket alone is exact.
func TestUnstampedReaderExact(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.invalidate(Invalidation{Name: k, X: at(500), Action: ActionDelete})
		none := known(0)
		none.V = change.Position{}
		if got := b.fill(FillRequest{Ticket: b.begin(k, none).Ticket, Payload: []byte("fresh")}); got != Stored {
			t.Fatalf("fill without a stamp: %v", got)
		}
		if got := b.header(k).Stamp; !got.IsZero() {
			t.Errorf("stamp %v out of nothing", got)
		}
		// It is never kept, for nothing is known of it.
		if got := b.invalidate(Invalidation{Name: k, X: at(1), Action: ActionKeep}); got.Deleted != 1 {
			t.Errorf("keep: %+v, want deleted", got)
		}
	})
}

func TestFillNeedsSource(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onMini, Options{}))
	k := b.name("product:1")
	old := known(100)
	old.V = change.Position{Era: testEra + 1, LSN: 100}
	bound := known(100)
	bound.Bound = at(300)
	for _, c := range []struct {
		name string
		r    FillRequest
		want Reason
	}{
		{"no source", FillRequest{Ticket: b.begin(k, Known{}).Ticket}, RefusedSource},
		{"standby of another era", FillRequest{Ticket: b.begin(k, known(1)).Ticket, Standby: true, Stamp: old.V}, RefusedSource},
		{"standby behind the bound", FillRequest{Ticket: b.begin(k, bound).Ticket, Standby: true, Stamp: at(300)}, RefusedBound},
		{"standby past the bound", FillRequest{Ticket: b.begin(k, bound).Ticket, Standby: true, Stamp: at(301)}, Stored},
		{"v of another era", FillRequest{Ticket: b.begin(k, old).Ticket}, Stored},
		{"composite", FillRequest{Ticket: b.begin(k, known(100)).Ticket, Composite: true, Stamp: at(60)}, Stored},
	} {
		if got := b.fill(c.r); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if c.name == "v of another era" && !b.header(k).Stamp.IsZero() {
			t.Errorf("v of another era became the stamp %v", b.header(k).Stamp)
		}
	}
	if got := b.header(k).Stamp; got != at(60) {
		t.Errorf("stamp of a composite %v, want %v", got, at(60))
	}
}

func TestFillPlain(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for _, rendered := range []string{"page:1", "page:{7}:x", "page:a}b", "page:a{}b"} {
			k := b.name("%s", rendered)
			begin := func() Ticket {
				got, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(1), Plain: true})
				must(t, err)
				return got.Ticket
			}
			slow := begin()
			got := b.invalidate(Invalidation{Name: k, X: at(5), Plain: true})
			if got.Absent+got.Deleted != 1 {
				t.Errorf("%q: invalidate an absent plain entry: %+v", k, got)
			}
			if got := b.fill(FillRequest{Ticket: slow, Payload: []byte("old")}); got != RefusedAbsent {
				t.Errorf("%q: late fill: %v, want absent", k, got)
			}
			if got := b.fill(FillRequest{Ticket: begin(), Payload: []byte("new"), TTL: time.Hour}); got != Stored {
				t.Errorf("%q: fill: %v", k, got)
			}
			if v := b.rdb.Get(b.ctx(), k).Val(); v != "new" {
				t.Errorf("%q holds %q, want the raw value", k, v)
			}
			if ttl := b.rdb.TTL(b.ctx(), k).Val(); ttl <= 0 || ttl > time.Hour {
				t.Errorf("%q lives %v", k, ttl)
			}
			b.invalidate(Invalidation{Name: k, X: at(6), Plain: true})
			if n := b.rdb.Exists(b.ctx(), k, b.Layout().Ticket(k)).Val(); n != 0 {
				t.Errorf("%q: %d of key and ticket are left", k, n)
			}
		}
	})
}

// everywhereWith is everywhere with settings.
func everywhereWith(t *testing.T, o Options, test func(t *testing.T, b *bench)) {
	for _, kind := range []string{onRedis, onLegacy, onMini} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, seeded(open(t, kind, o)))
		})
	}
}

// A composite from a standby: the table is asked about what the load itself
// read, the bound of the generation about the least.
func TestFillCompositeOfStandby(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		seeded(b)
		bound := known(300)
		bound.Bound = at(110)
		for i, c := range []struct {
			known      Known
			stamp, own change.Position
			want       Reason
		}{
			{known(300), at(100), at(201), Stored},
			{known(300), at(100), at(200), RefusedTable},
			{known(300), at(100), change.Position{}, RefusedTable},
			{known(300), at(100), change.Position{Era: testEra + 1, LSN: 1}, RefusedTable},
			{known(300), at(201), at(100), Stored}, // as without it
			{bound, at(100), at(201), RefusedBound},
		} {
			k := b.name("composite:%d", i)
			b.invalidate(Invalidation{Name: k, X: at(200)})
			r := FillRequest{Ticket: b.begin(k, c.known).Ticket, Standby: true, Composite: true, Stamp: c.stamp, Own: c.own}
			if got := b.fill(r); got != c.want {
				t.Errorf("stamp %v, own %v: %v, want %v", c.stamp, c.own, got, c.want)
			}
			if c.want == Stored && b.header(k).Stamp != c.stamp {
				t.Errorf("the header has the stamp %v, want %v", b.header(k).Stamp, c.stamp)
			}
		}
		// What is not composite has one stamp.
		k := b.name("plain")
		b.invalidate(Invalidation{Name: k, X: at(200)})
		if got := b.fill(FillRequest{Ticket: b.begin(k, known(300)).Ticket, Standby: true, Stamp: at(100), Own: at(201)}); got != RefusedTable {
			t.Errorf("not composite: %v, want %v", got, RefusedTable)
		}
	})
}
