package coherence

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
)

func TestKeepCoversExactly(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for _, c := range []struct {
			stamp, x uint64
			kept     bool
		}{
			{100, 99, true}, {100, 100, false}, {100, 101, false}, {1<<53 + 1, 1 << 53, true}, {1 << 53, 1<<53 + 1, false},
			{0x9fff, 0xa000, false}, {0xa000, 0x9fff, true}, {0xffffffff, 0x100000000, false}, {0x100000000, 0xffffffff, true},
		} {
			k := b.name("product:%d:%d", c.stamp, c.x)
			b.put(k, c.stamp)
			got := b.invalidate(Invalidation{Name: k, X: at(c.x), Action: ActionKeep})
			if (got.Kept == 1) != c.kept || (b.state(k) == "V") != c.kept {
				t.Errorf("stamp %x, X %x: %+v, state %q, want kept = %v", c.stamp, c.x, got.Counts, b.state(k), c.kept)
			}
			b.put(k, c.stamp)
			got = b.invalidate(Invalidation{Name: k, X: at(c.x), Action: ActionStale})
			if (got.Kept == 1) != c.kept || (b.state(k) == "S") == c.kept {
				t.Errorf("stamp %x, X %x, stale: %+v, state %q", c.stamp, c.x, got.Counts, b.state(k))
			}
		}
		// A batch raises the table to its greatest X, but judges by each own.
		one, two := b.name("one"), b.name("two")
		b.put(one, 100)
		b.put(two, 100)
		got := b.invalidate(
			Invalidation{Name: one, X: at(50), Action: ActionKeep}, Invalidation{Name: two, X: at(100), Action: ActionKeep},
		)
		if got.Kept != 1 || b.state(one) != "V" || b.state(two) != "" {
			t.Errorf("batch: %+v, states %q %q", got.Counts, b.state(one), b.state(two))
		}
	})
}

// Positions beyond 2^53, where a double would round, and of every era.
func TestLSNCompareBeyond2_53(t *testing.T) {
	t.Parallel()
	everywhereWith(t, Options{CoarseBatch: -1}, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		for _, x := range []change.Position{
			at(1 << 53), at(1<<53 + 1), at(1<<63 + 1), {Era: testEra, LSN: 1<<64 - 1}, {Era: 9, LSN: 1}, {Era: 10, LSN: 1 << 53}, {Era: 0xa0, LSN: 1},
		} {
			b.invalidate(Invalidation{Name: k, X: x})
			if got, _ := b.position(k); got != x {
				t.Fatalf("after %v the table says %v", x, got)
			}
			if x.LSN > 1 {
				b.invalidate(Invalidation{Name: k, X: change.Position{Era: x.Era, LSN: x.LSN - 1}})
			}
			b.invalidate(Invalidation{Name: k, X: change.Position{Era: x.Era - 1, LSN: 1<<64 - 1}})
			if got, _ := b.position(k); got != x {
				t.Fatalf("after something older than %v the table says %v", x, got)
			}
		}
	})
}

// The table is what a model says, for random batches in random order.
func TestTableProperty(t *testing.T) {
	t.Parallel()
	for _, coarse := range []int{-1, 3} {
		everywhereWith(t, Options{CoarseBatch: coarse}, func(t *testing.T, b *bench) {
			r := rand.New(rand.NewPCG(7, uint64(coarse)))
			exact := make(map[string]change.Position) // by bucket
			bucket := func(name string) string { c, f := b.Layout().Cell(name); return c + f }
			names := make([]string, 40)
			for i := range names {
				names[i] = b.name("product:%d", i%30)
			}
			var greatest change.Position
			for range 60 {
				batch := make([]Invalidation, 1+r.IntN(6))
				for i := range batch {
					x := change.Position{Era: uint16(1 + r.IntN(2)), LSN: change.LSN(r.Uint64N(1<<54) + 1000)}
					batch[i] = Invalidation{Name: names[r.IntN(len(names))], X: x, Action: Action(r.IntN(4)), Plain: r.IntN(4) == 0}
					greatest = greatest.Max(x)
					exact[bucket(batch[i].Name)] = exact[bucket(batch[i].Name)].Max(x)
				}
				b.invalidate(batch...)
				for _, name := range names {
					got, closed := b.position(name)
					if closed {
						t.Fatal("the table is closed")
					}
					if want := exact[bucket(name)]; got.Less(want) {
						t.Fatalf("%q: %v, below %v that invalidated its bucket", name, got, want)
					}
					if greatest.Less(got) {
						t.Fatalf("%q: %v, above everything, %v", name, got, greatest)
					}
				}
			}
			if coarse > 0 {
				return
			}
			// A bucket that nothing fell into stays at base.
			for i := range 1000 {
				name := b.name("other:%d", i)
				if got, _ := b.position(name); exact[bucket(name)].IsZero() && got != at(10) {
					t.Fatalf("%q: %v, want base %v", name, got, at(10))
				}
			}
		})
	}
}

func TestInvalidateCounts(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		var batch []Invalidation
		for i := range 30 {
			k := b.name("product:%d", i)
			if i%2 == 0 {
				b.put(k, 100)
			}
			batch = append(batch, Invalidation{Name: k, X: at(90), Action: []Action{ActionDelete, ActionKeep, ActionStale}[i%3], Group: i % 3})
		}
		plain := b.name("plain")
		must(t, b.rdb.LPush(b.ctx(), plain, "any type").Err())
		must(t, b.rdb.Set(b.ctx(), b.Layout().Ticket(plain), "ticket", 0).Err())
		batch = append(batch, Invalidation{Name: plain, X: at(90), Plain: true, Group: 4}, Invalidation{Name: b.name("none"), X: at(90), Plain: true, Group: 5})
		got := b.invalidate(batch...)
		want := []Counts{{Deleted: 5, Absent: 5}, {Kept: 5, Absent: 5}, {Kept: 5, Absent: 5}, {}, {Deleted: 1}, {Absent: 1}}
		if !slices.Equal(got.Groups, want) {
			t.Errorf("groups %+v\nwant   %+v", got.Groups, want)
		}
		if total := (Counts{Deleted: 6, Absent: 16, Kept: 10}); got.Counts != total {
			t.Errorf("total %+v, want %+v", got.Counts, total)
		}
		if got := b.invalidate(); len(got.Groups) != 0 {
			t.Errorf("empty batch: %+v", got)
		}
	})
}

// keep and stale on something that is no entry of ours.
func TestInvalidateForeignValues(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for _, action := range []Action{ActionDelete, ActionKeep, ActionStale} {
			list, raw, short := b.name("list"), b.name("raw"), b.name("short")
			must(t, b.rdb.SAdd(b.ctx(), list, "x").Err())
			must(t, b.rdb.Set(b.ctx(), raw, "a raw value that is longer than any header of an entry: "+strings.Repeat("x", 200), 0).Err())
			must(t, b.rdb.Set(b.ctx(), short, "\x01V", 0).Err())
			var batch []Invalidation
			for _, k := range []string{list, raw, short} {
				batch = append(batch, Invalidation{Name: k, X: at(90), Action: action})
			}
			if got := b.invalidate(batch...); got.Deleted != 3 {
				t.Errorf("action %d: %+v, want 3 deleted", action, got.Counts)
			}
			if n := b.rdb.Exists(b.ctx(), list, raw, short).Val(); n != 0 {
				t.Errorf("action %d: %d are left", action, n)
			}
		}
	})
}

// At the moment of UNLINK the table must have been raised: the library sends
// the two in this order on one connection.
func TestRaiseBeforeUnlink(t *testing.T) {
	t.Parallel()
	for _, coarse := range []int{-1, 1} {
		b := seeded(open(t, onRedis, Options{CoarseBatch: coarse}))
		k := b.name("product:1")
		b.put(k, 100)
		c := new(commands)
		b.rdb.AddHook(c)
		b.invalidate(
			Invalidation{Name: k, X: at(300), Action: ActionDelete}, Invalidation{Name: b.name("plain"), X: at(300), Plain: true},
			Invalidation{Name: b.name("kept"), X: at(300), Action: ActionKeep},
		)
		want := []string{"evalsha", "unlink", "exists", "unlink", "evalsha"}
		if !slices.Equal(c.names, want) || c.pipelines != 1 {
			t.Errorf("sent %v in %d pipelines, want %v in one", c.names, c.pipelines, want)
		}
		if len(c.first) < 2 || c.first[1] != b.sha(scriptTable) {
			t.Errorf("the first command is %v, want the table's script", c.first)
		}
	}
}

// The same for servers where it is one script: whoever sees the entry gone
// sees the table raised.
func TestRaiseAndUnlinkInOneScript(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onLegacy, Options{}))
	k := b.name("product:1")
	b.put(k, 100)
	c := new(commands)
	b.rdb.AddHook(c)
	b.invalidate(Invalidation{Name: k, X: at(300), Action: ActionDelete}, Invalidation{Name: b.name("plain"), X: at(300), Plain: true})
	if !slices.Equal(c.names, []string{"evalsha"}) {
		t.Errorf("sent %v, want one script", c.names)
	}
	if got, _ := b.position(k); got != at(300) || b.state(k) != "" {
		t.Errorf("table %v, state %q", got, b.state(k))
	}
}

// A master that fails between the two commands has lost the first with it.
// Whoever then repeats only the second leaves a lagging standby a way in.
func TestPairRepeatedAfterReconnect(t *testing.T) {
	t.Parallel()
	direct := seeded(open(t, onRedis, Options{CoarseBatch: -1}))
	k := direct.name("product:1")
	cell, field := direct.Layout().Cell(k)
	addr := cutBeforeUnlink(t, harness.Redis(t).Addr(), func() {
		// The failover: the raise is lost, the connection too.
		must(t, direct.rdb.HDel(context.Background(), cell, field).Err())
	})
	b := &bench{t: t}
	b.dial("redis://"+addr, Options{CoarseBatch: -1, Namespace: direct.Layout().Namespace()})
	b.invalidate(Invalidation{Name: b.name("warm"), X: at(300), Action: ActionKeep}) // the scripts are there

	batch := []Invalidation{{Name: k, X: at(300), Action: ActionDelete}}
	if _, err := b.Invalidate(b.ctx(), batch); err == nil {
		t.Error("the connection broke between the two, and Invalidate says that both were applied")
	}
	b.invalidate(batch...) // what the caller does
	if got, _ := b.position(k); got != at(300) {
		t.Errorf("after the repetition the table says %v, want %v", got, at(300))
	}
}

// cutBeforeUnlink is a server in front of a Redis. It lets everything pass
// until the first UNLINK; of that pipeline it passes on what stands before,
// waits for the reply, calls lose, and closes the connection.
func cutBeforeUnlink(t *testing.T, target string, lose func()) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	var cut atomic.Bool
	serve := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		buf, reply := make([]byte, 1<<16), make([]byte, 1<<16)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			at := bytes.Index(buf[:n], []byte("*2\r\n$6\r\nunlink\r\n"))
			if at > 0 && cut.CompareAndSwap(false, true) {
				n = at
			} else {
				at = -1
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
			got, err := server.Read(reply)
			if err != nil {
				return
			}
			if at > 0 {
				lose()
				return
			}
			if _, err := client.Write(reply[:got]); err != nil {
				return
			}
		}
	}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// Servers forget scripts; a pipeline must not stumble over it.
func TestInvalidateReloadsScripts(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		k := b.name("product:1")
		b.put(k, 100)
		if b.mini != nil {
			must(t, b.rdb.ScriptFlush(b.ctx()).Err())
		} else {
			// The server is shared: another name for the script is as unknown.
			sc := *scriptTable
			sc.modern, sc.legacy = sc.modern+"\n-- "+randomID(), sc.legacy+"\n-- "+randomID()
			if n, err := b.rdb.ScriptExists(b.ctx(), scriptSHA(sc.modern)).Result(); err != nil || n[0] {
				t.Fatalf("SCRIPT EXISTS: %v %v", n, err)
			}
			c := redis.NewCmd(b.ctx(), "evalsha", scriptSHA(sc.modern), 0)
			if err := b.pipelineOnce(b.ctx(), b.single, []redis.Cmder{c}); !noScript(err) {
				t.Fatalf("unknown script: %v", err)
			}
		}
		b.invalidate(Invalidation{Name: k, X: at(100), Action: ActionKeep})
		if got, _ := b.position(k); got != at(100) {
			t.Errorf("table says %v, want %v", got, at(100))
		}
	})
}

// The outcome of one entry is told where it is asked for.
func TestInvalidateTells(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		names := map[string]string{}
		for _, n := range []string{"kept", "deleted", "absent", "empty", "stale", "plain", "noplain", "untold"} {
			names[n] = b.name("%s", n)
		}
		for _, n := range []string{"kept", "deleted", "stale", "untold"} {
			b.put(names[n], 100)
		}
		b.begin(names["empty"], known(100))
		if err := b.rdb.Set(t.Context(), names["plain"], "raw", 0).Err(); err != nil {
			t.Fatal(err)
		}
		batch := []Invalidation{
			{Name: names["kept"], X: at(50), Action: ActionKeep, Tell: true},
			{Name: names["deleted"], X: at(150), Action: ActionKeep, Tell: true},
			{Name: names["absent"], X: at(150), Action: ActionKeep, Tell: true},
			{Name: names["empty"], X: at(150), Action: ActionKeep, Tell: true},
			{Name: names["stale"], X: at(150), Action: ActionStale, Tell: true},
			{Name: names["plain"], X: at(150), Plain: true, Tell: true},
			{Name: names["noplain"], X: at(150), Plain: true, Tell: true},
			{Name: names["untold"], X: at(150), Action: ActionKeep},
		}
		r := b.invalidate(batch...)
		got := map[string]Outcome{}
		for _, told := range r.Told {
			got[told.Name] = told.Outcome
		}
		want := map[string]Outcome{
			names["kept"]: OutcomeKept, names["deleted"]: OutcomeDeleted, names["absent"]: OutcomeAbsent, names["empty"]: OutcomeAbsent,
			names["stale"]: OutcomeStale, names["plain"]: OutcomeDeleted, names["noplain"]: OutcomeAbsent,
		}
		if !maps.Equal(got, want) || len(r.Told) != len(want) {
			t.Errorf("told %v, want %v", got, want)
		}
		if want := (Counts{Deleted: 3, Absent: 3, Kept: 1, Stale: 1}); r.Counts != want {
			t.Errorf("counts %+v, want %+v", r.Counts, want)
		}
	})
}
