package coherence

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

func lease(holder byte) Lease { return Lease{Holder: [8]byte{holder}, Until: 1 << 60} }

func (b *bench) lease(r LeaseRequest) bool {
	b.t.Helper()
	done, err := b.Lease(b.ctx(), r)
	if err != nil {
		b.t.Fatalf("Lease(%q): %v", r.Name, err)
	}
	return done
}

// Whoever takes a lease over changes nothing of what the ticket protects: the
// holder before still fills, and the entry lives as long as it would have.
func TestLeaseTakeOverKeepsIncarnation(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		holder, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(100), Lease: lease(1)})
		must(t, err)
		b.shorten(k)
		inc := holder.Ticket.Incarnation
		if !b.lease(LeaseRequest{Name: k, Incarnation: inc, Seen: lease(1), Next: lease(2)}) {
			t.Fatal("the lease that was seen is not taken over")
		}
		if h := b.header(k); h.Lease != lease(2) || h.Incarnation != inc {
			t.Errorf("after the take-over: lease %+v, incarnation %x, want %x", h.Lease, h.Incarnation, inc)
		}
		if ttl := b.rdb.PTTL(b.ctx(), k).Val(); ttl <= 0 || ttl > EmptyLife/2 {
			t.Errorf("the entry lives %v now, want at most the %v it had", ttl, EmptyLife/2)
		}
		if b.lease(LeaseRequest{Name: k, Incarnation: inc, Seen: lease(1), Next: lease(3)}) {
			t.Error("a lease that somebody else took over is taken again")
		}
		if got := b.fill(FillRequest{Ticket: holder.Ticket, Payload: []byte("v")}); got != Stored {
			t.Errorf("fill of the holder before: %v, want stored", got)
		}
	})
}

// shorten halves what is left of an entry's life.
func (b *bench) shorten(name string) {
	b.t.Helper()
	must(b.t, b.rdb.PExpire(b.ctx(), name, EmptyLife/2).Err())
}

// The lease of a value, or of a stale one, is a part of its header.
func TestLeaseOfValues(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.put(k, 100)
		for _, state := range []State{StateValue, StateStale} {
			if state == StateStale {
				b.invalidate(Invalidation{Name: k, X: at(200), Action: ActionStale})
			}
			before := b.header(k)
			if !b.lease(LeaseRequest{Name: k, Incarnation: before.Incarnation, Seen: before.Lease, Next: lease(4)}) {
				t.Fatalf("%c: not taken", state)
			}
			after := b.header(k)
			before.Lease = lease(4)
			if after.State != state || after.Lease != before.Lease || after.Incarnation != before.Incarnation || after.Stamp != before.Stamp || after.StaleSince != before.StaleSince {
				t.Errorf("%c: got %+v, want %+v", state, after, before)
			}
			raw, err := b.rdb.Get(b.ctx(), k).Bytes()
			must(t, err)
			if _, payload, err := Parse(raw); err != nil || string(payload) != "value" {
				t.Errorf("%c: payload %q, %v", state, payload, err)
			}
			// A holder who gives back does not ask which incarnation is there.
			if !b.lease(LeaseRequest{Name: k, Seen: lease(4), Next: FreeLease(time.Now())}) {
				t.Errorf("%c: not given back", state)
			}
		}
	})
}

func TestLeaseOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k, raw, list := b.name("product:1"), b.name("raw"), b.name("list")
		must(t, b.rdb.Set(b.ctx(), raw, "a raw value that is longer than the header of an entry, so that the one offset or the other would be inside of it", 0).Err())
		must(t, b.rdb.LPush(b.ctx(), list, "x").Err())
		old := b.begin(k, known(100)).Ticket
		must(t, b.rdb.Del(b.ctx(), k).Err())
		for _, name := range []string{k, raw, list} {
			if b.lease(LeaseRequest{Name: name, Next: lease(1)}) {
				t.Errorf("%s: has a lease now", name)
			}
		}
		if b.state(k) != "" {
			t.Error("an absent entry was made")
		}
		b.begin(k, known(100)) // another incarnation
		if b.lease(LeaseRequest{Name: k, Incarnation: old.Incarnation, Next: lease(1)}) {
			t.Error("the lease of another incarnation was taken")
		}
		if !b.lease(LeaseRequest{Name: k, Next: lease(1)}) || b.header(k).Lease != lease(1) {
			t.Error("an empty entry without lease takes none")
		}
		plain, err := b.Begin(b.ctx(), BeginRequest{Name: b.name("plain"), Plain: true, Known: known(1), Lease: lease(1)})
		must(t, err)
		if !b.lease(LeaseRequest{Name: b.name("plain"), Plain: true, Incarnation: plain.Ticket.Incarnation, Seen: lease(1), Next: lease(2)}) {
			t.Error("the lease of a plain entry is not taken over")
		}
	})
}

// Many see one lease that is over: one gets it.
func TestLeaseOneOfMany(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		got, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(1), Lease: lease(1)})
		must(t, err)
		var wg sync.WaitGroup
		var won atomic.Int64
		for i := range 20 {
			wg.Go(func() {
				done, err := b.Lease(b.ctx(), LeaseRequest{Name: k, Incarnation: got.Ticket.Incarnation, Seen: lease(1), Next: lease(byte(i + 2))})
				if err != nil {
					t.Error(err)
				}
				if done {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if n := won.Load(); n != 1 {
			t.Errorf("%d took the lease over, want 1", n)
		}
	})
}

func TestLeaseInCluster(t *testing.T) {
	t.Parallel()
	s := clustered(t, harness.NewRedisCluster(t, 3))
	var begins []BeginRequest
	for i := range 50 {
		begins = append(begins, BeginRequest{Name: s.Layout().Name(string(AppendGeneration(nil, uint64(i)))), Plain: i%5 == 4, Known: known(1), Lease: lease(1)})
	}
	begun, err := s.BeginAll(t.Context(), begins)
	must(t, err)
	var reqs []LeaseRequest
	for i, b := range begun {
		r := LeaseRequest{Name: b.Ticket.Name, Plain: b.Ticket.Plain, Incarnation: b.Ticket.Incarnation, Seen: lease(1), Next: lease(2)}
		if i%2 == 1 {
			r.Seen = lease(9)
		}
		reqs = append(reqs, r)
	}
	done, err := s.LeaseAll(t.Context(), reqs)
	must(t, err)
	for i := range done {
		if done[i] != (i%2 == 0) {
			t.Errorf("%d: %v", i, done[i])
		}
	}
}

func TestLeaseKinds(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	if l := OpenLease(now); !l.IsOpen() || l.Until != 1e6 {
		t.Errorf("open: %+v", l)
	}
	for _, until := range []time.Time{{}, now} {
		if l := FreeLease(until); l.IsOpen() || !l.IsFree() || l.Until != max(1, until.UnixMicro()) {
			t.Errorf("free: %+v", l)
		}
	}
	if (Lease{}).IsFree() || lease(1).IsFree() || OpenLease(now).IsFree() {
		t.Error("no lease, or another's, is free")
	}
}
