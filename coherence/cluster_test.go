package coherence

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// clustered opens a Store on a cluster, seeded.
func clustered(t *testing.T, c *servers.RedisCluster) *Store {
	t.Helper()
	s, err := Dial(t.Context(), c.URL(), Options{Namespace: "shop"})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	_, err = s.SetSource(t.Context(), change.Source{Era: testEra, SystemID: 7, Timeline: 1})
	must(t, err)
	n, err := s.Seed(t.Context(), func(context.Context) (change.Position, error) { return at(50), nil })
	must(t, err)
	if n != Slots {
		t.Fatalf("seeded %d tables, want one for each slot", n)
	}
	return s
}

// The whole protocol, with keys in every slot.
func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 3)
	s := clustered(t, cluster)
	ctx := t.Context()
	names := make([]string, 0, 300)
	for i := range 300 - len(awkward) {
		names = append(names, s.Layout().Name("product:"+string(AppendGeneration(nil, uint64(i)))))
	}
	for _, a := range awkward {
		names = append(names, s.Layout().Name(a))
	}
	begins := make([]BeginRequest, len(names))
	for i := range names {
		begins[i] = BeginRequest{Name: names[i], Known: known(100), Plain: i%5 == 4}
	}
	begun, err := s.BeginAll(ctx, begins)
	must(t, err)
	slow, err := s.BeginAll(ctx, begins)
	must(t, err)
	fills, late := make([]FillRequest, len(names)), make([]FillRequest, len(names))
	registers := make([]RegisterRequest, len(names))
	for i := range names {
		fills[i] = FillRequest{Ticket: begun[i].Ticket, Payload: []byte("v"), Standby: true, Stamp: at(100)}
		late[i] = FillRequest{Ticket: slow[i].Ticket, Payload: []byte("old")}
		registers[i] = RegisterRequest{Name: "shop:tag:" + string(AppendGeneration(nil, uint64(i%7))), Member: names[i], Stamp: at(100)}
	}
	for name, do := range map[string]func() ([]Reason, error){
		"register": func() ([]Reason, error) { return s.RegisterAll(ctx, registers) },
		"fill":     func() ([]Reason, error) { return s.FillAll(ctx, fills) },
	} {
		got, err := do()
		must(t, err)
		if i := slices.IndexFunc(got, func(r Reason) bool { return r != Stored }); i >= 0 {
			t.Fatalf("%s of %q: %v", name, names[i], got[i])
		}
	}
	batch := make([]Invalidation, len(names))
	for i := range names {
		batch[i] = Invalidation{Name: names[i], X: at(200), Plain: i%5 == 4, Action: Action(i % 4), Group: i % 2}
	}
	got, err := s.Invalidate(ctx, batch)
	must(t, err)
	if got.Deleted+got.Stale != len(names) || got.Absent != 0 {
		t.Errorf("invalidated %+v", got)
	}
	reasons, err := s.FillAll(ctx, late)
	must(t, err)
	for i, r := range reasons {
		if r != RefusedAbsent && r != RefusedIncarnation {
			t.Errorf("late fill of %q: %v", names[i], r)
		}
		if pos, closed, err := s.TablePosition(ctx, names[i], testEra); err != nil || closed || pos != at(200) {
			t.Errorf("table of %q: %v %v %v", names[i], pos, closed, err)
		}
	}

	p := Purge{X: at(300), Tags: []string{registers[0].Name, registers[1].Name}}
	must(t, s.OpenPurge(ctx, p, at(300)))
	if r, err := s.Register(ctx, RegisterRequest{Name: p.Tags[1], Member: "x", Stamp: at(250)}); err != nil || r != RefusedTable {
		t.Errorf("register in a purge: %v %v", r, err)
	}
	members, _, err := s.Members(ctx, p.Tags[0], 0, 10_000)
	if err != nil || len(members) != 43 {
		t.Errorf("%d members (%v)", len(members), err)
	}
	must(t, s.ClosePurge(ctx, p, at(300)))
	if _, err := s.Raise(ctx, RaiseRequest{Cause: "c", Classes: []string{"*"}}); err != nil {
		t.Error(err)
	}
	removed, _, err := s.Prune(ctx, p.Tags[0], 0, 10_000)
	if err != nil || removed == 0 {
		t.Errorf("pruned %d (%v)", removed, err)
	}
	if _, _, err := s.Broadcast(ctx, Message{Kind: KindHeartbeat, V: at(300), W: at(300)}); err != nil {
		t.Error(err)
	}
	must(t, s.WriteWatermarks(ctx, 2, at(300), change.Position{}))
	marks, err := s.ReadWatermarks(ctx, 2)
	must(t, err)
	if len(marks) != 3 || marks[0].LeastSlot != 0 || slices.ContainsFunc(marks, Watermark.Lost) {
		t.Errorf("watermarks %+v", marks)
	}
	must(t, s.Check(ctx))
	must(t, s.Walk(ctx, []string{"shop:*"}, nil))
	for _, m := range cluster.Masters {
		c := redis.NewClient(&redis.Options{Addr: m.Addr(), MaintNotificationsConfig: noMaintenance()})
		keys, err := c.Keys(ctx, "shop:*").Result()
		if err != nil || len(keys) > 0 {
			t.Errorf("after the walk: %v %v", keys, err)
		}
		_ = c.Close()
	}
}

// One Store serves all partitions of a process at once.
func TestClusterIsShared(t *testing.T) {
	t.Parallel()
	s := clustered(t, harness.NewRedisCluster(t, 2))
	var wait sync.WaitGroup
	for p := range 4 {
		wait.Go(func() {
			for i := range uint64(20) {
				name := s.Layout().Name("product:" + string(AppendGeneration(nil, i)))
				_, err := s.Invalidate(t.Context(), []Invalidation{{Name: name, X: at(100 + i)}})
				if err == nil {
					err = s.Check(t.Context())
				}
				if err == nil {
					// The watermark of a master is not in the slot of the control data.
					var marked bool
					_, marked, err = s.BroadcastKeys(t.Context(), Message{Names: []string{name}, X: at(100 + i)}, &Mark{Partition: p, Position: at(101 + i)})
					if marked {
						t.Error("a watermark went with a broadcast in a cluster")
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// A slot that changes hands: its new master counts as lost, since it may as
// well be a replica that missed writes; the redo and the rest go on, and
// nothing is applied to one half of a pair only.
func TestClusterSlotMoves(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 2)
	s := clustered(t, cluster)
	ctx := t.Context()
	k := "shop:{a}:1"
	slot := Slot(k)
	from, to := cluster.Masters[0], cluster.Masters[1]
	if slot > 8191 {
		from, to = to, from
	}
	client := func(r *servers.Redis) *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: r.Addr(), MaintNotificationsConfig: noMaintenance()})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	src, dst := client(from), client(to)
	id := func(c *redis.Client) string { return c.Do(ctx, "cluster", "myid").Val().(string) }
	set := func(c *redis.Client, args ...any) {
		t.Helper()
		must(t, c.Do(ctx, append([]any{"cluster", "setslot", slot}, args...)...).Err())
	}
	b := []Invalidation{{Name: k, X: at(200)}, {Name: "shop:{a}:2", X: at(200)}}

	// Half-way: the slot is migrating, absent keys answer ASK, groups TRYAGAIN.
	set(dst, "importing", id(src))
	set(src, "migrating", id(dst))
	if _, err := s.Invalidate(ctx, b); err != nil {
		t.Errorf("invalidate in a migrating slot: %v", err)
	}
	if pos, _, err := s.TablePosition(ctx, k, testEra); err != nil || pos != at(200) {
		t.Errorf("table %v %v", pos, err)
	}

	keys, err := src.Do(ctx, "cluster", "getkeysinslot", slot, 100).StringSlice()
	must(t, err)
	for _, key := range keys {
		must(t, src.Migrate(ctx, "127.0.0.1", port(to), key, 0, 0).Err())
	}
	for _, c := range []*redis.Client{dst, src} {
		set(c, "node", id(dst))
	}
	var lost *NodeLostError
	_, err = s.Invalidate(ctx, b)
	if !errors.As(err, &lost) || lost.Node != to.Addr() || lost.Cause != "topology" {
		t.Fatalf("invalidate after the move: %v", err)
	}
	redo := DuringRedo(ctx, lost)
	b[0].X = at(300)
	if _, err := s.Invalidate(redo, b); err != nil {
		t.Fatalf("redo: %v", err)
	}
	must(t, s.Acknowledge(ctx, lost))
	must(t, s.Check(ctx))
	if _, err := s.Invalidate(ctx, b); err != nil {
		t.Error(err)
	}
	if pos, closed, err := s.TablePosition(ctx, k, testEra); err != nil || closed || pos != at(300) {
		t.Errorf("table %v %v %v", pos, closed, err)
	}
}

func port(r *servers.Redis) string {
	_, p, _ := cutLast(r.Addr(), ':')
	return p
}

func cutLast(s string, sep byte) (before, after string, found bool) {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// A single address of a cluster is enough.
func TestClusterFromOneAddress(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 2)
	s, err := Dial(t.Context(), "redis://"+cluster.Masters[1].Addr(), Options{})
	must(t, err)
	defer s.Close()
	if !s.Layout().Cluster() {
		t.Error("taken for a single node")
	}
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	master := harness.NewRedis(t, servers.RedisConfig{})
	harness.NewRedisReplica(t, master)
	sentinel := harness.NewSentinel(t, master, 1)
	b := &bench{t: t}
	b.dial(sentinel.URL(), Options{Namespace: "shop"})
	seeded(b)
	b.put("shop:k", 100)
	b.invalidate(Invalidation{Name: "shop:k", X: at(100)})
	master.Kill()
	lost := b.lost()
	if lost.Cause != "run_id" {
		t.Errorf("lost %+v", lost)
	}
	// The library may dial the dead one once more before it follows.
	harness.Eventually(t, 10*time.Second, func() error { return b.Acknowledge(b.ctx(), lost) })
	b.invalidate(Invalidation{Name: "shop:k", X: at(100)})
}
