package coherence

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// limit gives a server a policy and about room bytes more than it uses.
func (b *bench) limit(policy string, room int64) {
	b.t.Helper()
	must(b.t, b.rdb.ConfigSet(b.ctx(), "maxmemory-policy", policy).Err())
	stats, err := b.NodeStats(b.ctx())
	must(b.t, err)
	must(b.t, b.rdb.ConfigSet(b.ctx(), "maxmemory", fmt.Sprint(stats[0].UsedMemory+room)).Err())
}

// stuff fills memory with entries that live ttl, until the server refuses or
// has evicted at least evictions keys. It returns whether it refused.
func (b *bench) stuff(ttl time.Duration, evictions uint64) (refused bool) {
	b.t.Helper()
	payload := []byte(strings.Repeat("x", 2000))
	for i := 0; i < 40_000; i += 200 {
		begins := make([]BeginRequest, 200)
		for j := range begins {
			begins[j] = BeginRequest{Name: b.name("stuff:%d", i+j), Known: known(100)}
		}
		begun, err := b.BeginAll(b.ctx(), begins)
		if isOOM(err) {
			return true
		}
		must(b.t, err)
		fills := make([]FillRequest, len(begun))
		for j := range fills {
			fills[j] = FillRequest{Ticket: begun[j].Ticket, Payload: payload, TTL: ttl}
		}
		if _, err := b.FillAll(b.ctx(), fills); isOOM(err) {
			return true
		} else if err != nil {
			b.t.Fatal(err)
		}
		stats, err := b.NodeStats(b.ctx())
		must(b.t, err)
		if evictions > 0 && stats[0].EvictedKeys >= evictions {
			return false
		}
	}
	b.t.Fatal("memory never became full")
	return false
}

func isOOM(err error) bool { return err != nil && strings.Contains(errText(err), "OOM ") }

// A Redis that is full refuses to remember. It must not refuse to forget.
func TestInvalidateUnderOOM(t *testing.T) {
	t.Parallel()
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy=%v", legacy), func(t *testing.T) {
			t.Parallel()
			server := harness.NewRedis(t, servers.RedisConfig{})
			b := seeded(on(t, server, Options{CoarseBatch: -1}))
			b.legacy, b.setGet = legacy, !legacy
			deleted, kept, stale, missed, tag := b.name("deleted"), b.name("kept"), b.name("stale"), b.name("missed"), b.name("tag")
			for _, k := range []string{deleted, kept, stale, missed} {
				b.put(k, 100)
			}
			b.register(tag, kept, 100)
			// Below what is used by far: nothing that follows makes room enough.
			must(t, b.rdb.ConfigSet(b.ctx(), "maxmemory", "1").Err())
			if _, err := b.Begin(b.ctx(), BeginRequest{Name: b.name("new"), Known: known(1)}); !isOOM(err) {
				t.Fatalf("memory is not full: %v", err)
			}

			// Each alone: with others before it in one pipeline memory may
			// have become free.
			for _, inv := range []Invalidation{
				{Name: b.name("absent"), X: at(90)}, {Name: kept, X: at(90), Action: ActionKeep},
				{Name: stale, X: at(110), Action: ActionStale}, {Name: missed, X: at(110), Action: ActionKeep},
				{Name: b.name("plain"), X: at(110), Plain: true}, {Name: deleted, X: at(200)},
			} {
				b.invalidate(inv)
				if got, _ := b.position(inv.Name); got.Less(inv.X) {
					t.Errorf("%q: the table says %v after %v", inv.Name, got, inv.X)
				}
			}
			for k, want := range map[string]string{deleted: "", kept: "V", stale: "S", missed: ""} {
				if got := b.state(k); got != want {
					t.Errorf("%q is %q, want %q", k, got, want)
				}
			}
			p := Purge{X: at(300), Tags: []string{tag}}
			b.open(p)
			b.sweep(p)
			b.close(p)
			if b.state(kept) != "" {
				t.Error("the purge left a member")
			}
			b.raise("full", "product")
			_, _, err := b.Broadcast(b.ctx(), Message{Kind: KindKeys, X: at(1), V: at(400), Names: []string{deleted}})
			must(t, err)
			_, _, err = b.Broadcast(b.ctx(), Message{Kind: KindHeartbeat, V: at(400), W: at(390)})
			must(t, err)
			must(t, b.WriteWatermarks(b.ctx(), 0, at(390), change.Position{}))
			must(t, b.RestoreControl(b.ctx(), b.control("product")))
			if _, err := b.SetSource(b.ctx(), change.Source{Era: testEra + 1, SystemID: 7, Timeline: 2}); err != nil {
				t.Error(err)
			}
			if got := b.control(); got.Number == 0 || got.Source.Era != testEra+1 {
				t.Errorf("control %+v", got)
			}
		})
	}
}

// What Policy says is what each policy does at maxmemory.
func TestPolicyAtMaxmemory(t *testing.T) {
	t.Parallel()
	server := harness.NewRedis(t, servers.RedisConfig{})
	for _, policy := range Policies() {
		b := on(t, server, Options{CoarseBatch: -1})
		must(t, b.rdb.ConfigSet(b.ctx(), "maxmemory", "0").Err())
		must(t, b.rdb.FlushAll(b.ctx()).Err())
		must(t, b.rdb.ConfigResetStat(b.ctx()).Err())
		seeded(b)
		want := Policy(policy)
		if !want.Known || !want.Keys {
			t.Fatalf("%s: %+v", policy, want)
		}
		const tags = 200
		for i := range tags {
			tag := b.name("tag:%d", i)
			b.register(tag, b.name("member"), 100)
		}
		classes := make([]string, tags)
		for i := range classes {
			classes[i] = fmt.Sprintf("class-%d", i)
		}
		b.raise("start", classes...)
		slow := b.begin(b.name("slow"), known(100))
		b.limit(policy, 2<<20)
		// Until so many were evicted that, were Lethe's own keys among the
		// candidates, some of them were.
		refused := b.stuff(time.Hour, 3000)

		stats, err := b.NodeStats(b.ctx())
		must(t, err)
		if stats[0].Policy != policy || (stats[0].EvictedKeys == 0) != refused {
			t.Errorf("%s: stats %+v, refused %v", policy, stats[0], refused)
		}
		if refused == want.Fills {
			t.Errorf("%s: fills refused = %v, want fills = %v", policy, refused, want.Fills)
		}
		keys := func(pattern string) int {
			n := 0
			for it := b.rdb.Scan(b.ctx(), 0, pattern, 1000).Iterator(); it.Next(b.ctx()); {
				n++
			}
			return n
		}
		ns := b.Layout().Namespace()
		for _, c := range []struct {
			what string
			have int
			all  int
			safe bool
		}{
			{"table", keys("lethe:{c:" + ns + "}:b:*"), BucketsSingle/BucketsPerCell + 1, want.Table},
			{"tags", keys("lethe:i:{" + ns + ":tag:*"), tags, want.Tags},
			{"records", keys("lethe:{c:" + ns + "}:class:class-*"), tags, want.Records},
		} {
			if (c.have == c.all) != c.safe {
				t.Errorf("%s: %d of %d %s are left, Policy says safe = %v", policy, c.have, c.all, c.what, c.safe)
			}
		}
		// Keys are exact whatever is evicted: tickets as well as values.
		b.invalidate(Invalidation{Name: b.name("slow"), X: at(200)})
		if got, err := b.Fill(b.ctx(), FillRequest{Ticket: slow.Ticket}); err == nil && got == Stored {
			t.Errorf("%s: late fill stored", policy)
		}
		// And the table fails closed where it was evicted.
		for i := range 200 {
			k := b.name("standby:%d", i)
			if _, closed := b.position(k); !closed {
				continue
			}
			begun, err := b.Begin(b.ctx(), BeginRequest{Name: k, Known: known(1)})
			if err != nil {
				continue
			}
			if got, err := b.Fill(b.ctx(), FillRequest{Ticket: begun.Ticket, Standby: true, Stamp: at(1 << 40)}); err == nil && got == Stored {
				t.Errorf("%s: a standby's value was stored without a table", policy)
			}
		}
	}
	if g := Policy("allkeys-new"); g.Known || g.Exact() || g.Tags {
		t.Errorf("unknown policy: %+v", g)
	}
}

// Where an index can be evicted nobody sees it go, but evicted_keys moves.
func TestIndexEvictionRaises(t *testing.T) {
	t.Parallel()
	for policy, noticed := range map[string]bool{"allkeys-random": true, "volatile-lru": false} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			b := seeded(on(t, harness.NewRedis(t, servers.RedisConfig{}), Options{}))
			b.limit(policy, 1<<20)
			must(t, b.Check(b.ctx()))
			must(t, b.Check(b.ctx()))
			b.stuff(time.Hour, 50)
			err := b.Check(b.ctx())
			var lost *NodeLostError
			if got := errors.As(err, &lost) && lost.Cause == "evicted"; got != noticed {
				t.Fatalf("Check: %v, want noticed = %v", err, noticed)
			}
			if !noticed {
				return
			}
			if _, err := b.Invalidate(b.ctx(), []Invalidation{{Name: "k", X: at(1)}}); !errors.Is(err, ErrNodeLost) {
				t.Errorf("invalidate: %v", err)
			}
			if _, err := b.Raise(DuringRedo(b.ctx(), lost), RaiseRequest{Cause: "evicted", Classes: []string{"tagged"}}); err != nil {
				t.Error(err)
			}
			must(t, b.Acknowledge(b.ctx(), lost))
			b.invalidate(Invalidation{Name: "k", X: at(1)})
		})
	}
}
