package coherence

import (
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

func (b *bench) members(tag string) []string {
	b.t.Helper()
	var all []string
	for cursor := uint64(0); ; {
		m, next, err := b.Members(b.ctx(), tag, cursor, 10)
		must(b.t, err)
		all = append(all, m...)
		if cursor = next; cursor == 0 {
			slices.Sort(all)
			return slices.Compact(all)
		}
	}
}

func (b *bench) open(p Purge) {
	b.t.Helper()
	must(b.t, b.OpenPurge(b.ctx(), p, p.X))
}

func (b *bench) close(p Purge) {
	b.t.Helper()
	must(b.t, b.ClosePurge(b.ctx(), p, p.X))
}

// sweep is step 3 of a purge.
func (b *bench) sweep(p Purge) {
	b.t.Helper()
	for _, tag := range p.Tags {
		for _, m := range b.members(tag) {
			b.invalidate(Invalidation{Name: m, X: p.X})
		}
	}
}

// From its first step on a purge lets nothing in that misses its commit.
func TestRegisterRefusedInPurge(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag := b.name("category:7")
		if got := b.register(tag, b.name("product:1"), 100); got != Stored {
			t.Fatalf("register: %v", got)
		}
		p := Purge{X: at(200), Tags: []string{tag}}
		b.open(p)
		for _, c := range []struct {
			stamp uint64
			want  Reason
		}{{100, RefusedTable}, {200, RefusedTable}, {201, Stored}} {
			if got := b.register(tag, b.name("product:2"), c.stamp); got != c.want {
				t.Errorf("register at %d in the purge of 200: %v, want %v", c.stamp, got, c.want)
			}
		}
		b.close(p)
		if got := b.register(tag, b.name("product:3"), 150); got != RefusedTable {
			t.Errorf("register at 150 after the purge: %v, want table", got)
		}
		if got, want := b.members(tag), []string{b.name("product:1"), b.name("product:2")}; !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	})
}

// A purge of a tag without header leaves its mark in the bucket, and the
// header that comes later must begin there.
func TestHeaderCreatedFromBucket(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag := b.name("category:7")
		b.open(Purge{X: at(200), Tags: []string{tag}})
		if got := b.register(tag, b.name("product:1"), 150); got != RefusedTable {
			t.Errorf("register behind the bucket: %v, want table", got)
		}
		if got := b.register(tag, b.name("product:1"), 201); got != Stored {
			t.Errorf("register: %v, want stored", got)
		}
		if got := b.rdb.HGet(b.ctx(), b.Layout().TagHeader(tag), "pos").Val(); got != at(200).String() {
			t.Errorf("the header begins at %q, want %v", got, at(200))
		}
		// With a header the other names of the bucket do not matter any more.
		b.invalidate(Invalidation{Name: tag, X: at(900)})
		if got := b.register(tag, b.name("product:2"), 201); got != Stored {
			t.Errorf("register beside a raised bucket: %v, want stored", got)
		}
	})
}

// pruneRead is the second half of a prune, of a member that was read before and
// whose entry was seen to be absent.
func (b *bench) pruneRead(p Page, member string) int {
	b.t.Helper()
	i := slices.Index(p.Members, member)
	if i < 0 {
		b.t.Fatalf("%q was not read: %v", member, p.Members)
	}
	u := b.pruneUnit(b.ctx(), Index(p.index), []any{p.id, randomID(), member, p.seqs[i]})
	must(b.t, b.do(b.ctx(), []unit{u}))
	return int(u.cmds[0].(*redis.IntCmd).Val())
}

// The numbers begin again when the last member is pruned. A pruner that paused
// between reading and removing must not take the first registration under the
// next header for the one that it has read.
func TestPruneNeedsTheHeaderThatItRead(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag, k := b.name("category:7"), b.name("product:1")
		b.register(tag, k, 100)
		// One pruner reads the member, sees its entry absent, and pauses ...
		read, err := b.MemberPage(b.ctx(), tag, 0, 100)
		must(t, err)
		// ... another is faster, and takes the header with the last member ...
		if removed, _, err := b.Prune(b.ctx(), tag, 0, 100); err != nil || removed != 1 {
			t.Fatalf("pruned %d (%v), want 1", removed, err)
		}
		// ... a reader registers and fills ...
		b.register(tag, k, 100)
		b.put(k, 100)
		// ... and the first goes on.
		if removed := b.pruneRead(read, k); removed != 0 || !slices.Contains(b.members(tag), k) {
			t.Errorf("removed %d: a live value lost its registration", removed)
		}
	})
}

// Clients of an older release give headers no id. While they run beside us, two
// headers of a name that follow each other must not look the same either; what
// is garbage under one of theirs is removed a look later.
func TestPruneOfAHeaderWithoutID(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag, k := b.name("category:7"), b.name("product:1")
		older := func() {
			b.register(tag, k, 100)
			must(t, b.rdb.HDel(b.ctx(), b.Layout().TagHeader(tag), "id").Err())
		}
		older()
		read, err := b.MemberPage(b.ctx(), tag, 0, 100)
		must(t, err)
		removed := 0
		for range 2 {
			n, _, err := b.Prune(b.ctx(), tag, 0, 100)
			must(t, err)
			removed += n
		}
		if n := b.rdb.Exists(b.ctx(), b.Layout().TagHeader(tag), b.Layout().TagIndex(tag)).Val(); removed != 1 || n != 0 {
			t.Fatalf("two looks pruned %d, %d of header and index are left; want 1 and none", removed, n)
		}
		older()
		b.put(k, 100)
		if removed := b.pruneRead(read, k); removed != 0 || !slices.Contains(b.members(tag), k) {
			t.Errorf("removed %d: a live value lost its registration", removed)
		}
	})
}

func TestPruneNeedsSequence(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag, k, other := b.name("category:7"), b.name("product:1"), b.name("product:2")
		b.register(tag, k, 100)
		b.register(tag, other, 100)
		b.put(other, 100)
		// The pruner reads member and number, sees the entry absent, pauses ...
		read, err := b.MemberPage(b.ctx(), tag, 0, 100)
		must(t, err)
		// ... a reader registers and fills ...
		b.register(tag, k, 100)
		b.put(k, 100)
		// ... and the pruner goes on.
		removed := b.pruneRead(read, k)
		if removed != 0 || !slices.Contains(b.members(tag), k) {
			t.Errorf("removed %d: a live value lost its registration", removed)
		}
		// An empty entry is not absent: its fill may follow.
		b.invalidate(Invalidation{Name: k, X: at(90)})
		b.begin(k, known(100))
		if removed, _, err = b.Prune(b.ctx(), tag, 0, 100); err != nil || removed != 0 {
			t.Errorf("pruned %d under a ticket (%v)", removed, err)
		}
		b.invalidate(Invalidation{Name: k, X: at(90)}, Invalidation{Name: other, X: at(90)})
		if removed, _, err = b.Prune(b.ctx(), tag, 0, 100); err != nil || removed != 2 {
			t.Errorf("pruned %d (%v), want 2", removed, err)
		}
		if n := b.rdb.Exists(b.ctx(), b.Layout().TagHeader(tag), b.Layout().TagIndex(tag)).Val(); n != 0 {
			t.Errorf("%d of header and index outlived the last member", n)
		}
	})
}

// The ticket of a plain entry stands beside the value: as long as it is there,
// a fill may follow, and the value must not be without its registration.
func TestPruneSparesPlainTicket(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for _, k := range []string{b.name("raw:1"), b.name("raw:{2}:x")} {
			tag := b.name("category:9")
			begun, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(100), Plain: true})
			must(t, err)
			b.register(tag, k, 100)
			if removed, _, err := b.Prune(b.ctx(), tag, 0, 100); err != nil || removed != 0 {
				t.Errorf("pruned %d (%v) between REGISTER and FILL", removed, err)
			}
			b.fill(FillRequest{Ticket: begun.Ticket, Payload: []byte("v")})
			if !slices.Contains(b.members(tag), k) {
				t.Errorf("%q is cached and no purge finds it", k)
			}
			b.invalidate(Invalidation{Name: k, X: at(90), Plain: true})
			if removed, _, err := b.Prune(b.ctx(), tag, 0, 100); err != nil || removed != 1 {
				t.Errorf("pruned %d (%v), want 1", removed, err)
			}
		}
	})
}

// A worker dies within a purge, another repeats it; later a duplicate opens it
// once more and dies too.
func TestPurgeTwiceAndDead(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag, k := b.name("category:7"), b.name("product:1")
		b.register(tag, k, 100)
		b.put(k, 100)
		p := Purge{X: at(200), Tags: []string{tag, b.name("all")}, All: false}
		b.open(p) // dead before the sweep
		if got := b.control().Purges; len(got) != 1 || got[0].X != p.X || len(got[0].Tags) != 2 {
			t.Fatalf("open purges %+v", got)
		}
		if b.state(k) != "V" {
			t.Fatal("swept already")
		}
		b.open(p)
		if got := b.control().Purges; len(got) != 1 {
			t.Errorf("a repetition is listed again: %+v", got)
		}
		b.sweep(p)
		b.close(p)
		b.close(p)
		if got := b.control().Purges; len(got) != 0 || b.state(k) != "" {
			t.Errorf("after the purge: open %+v, state %q", got, b.state(k))
		}
		// A value that contains the commit is swept by a late duplicate at
		// worst; the list does not stay open for ever: w passes it.
		b.open(p)
		w := func(lsn uint64) {
			_, _, err := b.Broadcast(b.ctx(), Message{Kind: KindHeartbeat, V: at(lsn), W: at(lsn)})
			must(t, err)
		}
		w(200)
		if got := b.control().Purges; len(got) != 1 {
			t.Errorf("w = X ended the purge: %+v", got)
		}
		w(201)
		if got := b.control().Purges; len(got) != 0 {
			t.Errorf("open purges behind w: %+v", got)
		}
	})
}

func TestPurgeOfIntersection(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		a, c := b.name("a"), b.name("c")
		both, one := b.name("both"), b.name("one")
		b.register(a, both, 100)
		b.register(c, both, 100)
		b.register(a, one, 100)
		p := Purge{X: at(200), Tags: []string{c, a, c}, All: true}
		b.open(p)
		if got := b.control().Purges; len(got) != 1 || !got[0].All || !slices.Equal(got[0].Tags, []string{a, c}) {
			t.Errorf("open purges %+v", got)
		}
		for _, tag := range []string{a, c} {
			if got := b.register(tag, one, 150); got != RefusedTable {
				t.Errorf("register under %q: %v", tag, got)
			}
		}
		members := b.members(a)
		in, err := b.Registered(b.ctx(), c, members)
		must(t, err)
		if want := []bool{true, false}; !slices.Equal(in, want) {
			t.Errorf("members %v of a in c: %v, want %v", members, in, want)
		}
	})
}

func TestRegisterNeedsStamp(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onMini, Options{}))
	got, err := b.Register(b.ctx(), RegisterRequest{Name: b.name("t"), Member: b.name("k"), Stamp: change.Position{}})
	if must(t, err); got != RefusedSource {
		t.Errorf("register without a stamp: %v", got)
	}
	r := FillRequest{Ticket: Ticket{Known: known(77)}}
	if got := r.RegisterStamp(); got != at(77) {
		t.Errorf("RegisterStamp = %v, want v of BEGIN", got)
	}
}
