package invalidator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// days is the life of a cache of tagged entries in a Redis whose memory is
// full: it is read, what is in it expires and is evicted, tags are purged. The
// clock is the test's: a key that expires is told so at its time, everything
// else is Redis's own doing.
type days struct {
	*world
	r   *rand.Rand
	now time.Time
	// held is what was filled, by key; due whose time has come, by minute.
	held   map[string]held
	due    map[int64][]string
	serial int
	// filled, expired and purged count.
	filled, refused, expired, purged, checked int
}

type held struct {
	value   string
	tags    [2]int
	expires int64
}

const (
	daysTags = 20
	// dayTick is long beside the seconds that the pruner may take between two
	// rounds where much is found: here it comes twice in ten minutes at most.
	dayTick = 10 * time.Minute
)

// TestIndexAfterTwoDays: after 48 hours of fills, expiry, eviction and purges
// no more than 5 % of the index is garbage, and no purge has missed a member.
// LETHE_INDEX_HOURS sets another number of hours, LETHE_INDEX_FILLS how many
// entries are filled in ten minutes.
func TestIndexAfterTwoDays(t *testing.T) {
	t.Parallel()
	hours, fills := fromEnv(t, "LETHE_INDEX_HOURS", 48), fromEnv(t, "LETHE_INDEX_FILLS", 40)
	server := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--maxmemory-policy", "volatile-lru"}})
	w := newWorld(t, worldConfig{url: server.URL(), cfg: func(c *Config) { c.PruneRate = 1 << 30 }})
	worker := w.ready()
	d := &days{
		world: w, r: rand.New(rand.NewPCG(seedOf(t), 1)), now: time.Unix(1e9, 0),
		held: map[string]held{}, due: map[int64][]string{},
	}
	stats := func() coherence.NodeStats {
		s, err := w.store.NodeStats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s[0]
	}
	// Room for some three hours of fills, so that many are evicted before their time.
	room := int64(fills) * 18 * 1600
	if err := w.rdb.ConfigSet(t.Context(), "maxmemory", strconv.FormatInt(stats().UsedMemory+room, 10)).Err(); err != nil {
		t.Fatal(err)
	}
	pruner := worker.newPruner()
	worst, removed := 0.0, 0
	for range hours * int(time.Hour/dayTick) {
		d.now = d.now.Add(dayTick)
		d.expire()
		// The pruner and the worker against readers.
		var wg sync.WaitGroup
		before := d.snapshot()
		wg.Go(func() { d.fill(fills) })
		if d.r.IntN(3) == 0 {
			d.purge(before)
		}
		for _, at := range []time.Time{d.now, d.now.Add(dayTick / 2)} {
			if _, err := pruner.turn(t.Context(), at); err != nil {
				t.Errorf("prune: %v", err)
			}
			removed += pruner.round.Removed
			worst = max(worst, pruner.round.Ratio())
			wg.Wait()
		}
		if t.Failed() {
			return
		}
	}
	last := d.garbage()
	evicted := stats().EvictedKeys
	t.Logf("%d hours: %d filled (%d refused), %d expired, %d evicted, %d purges (%d members looked for), %d pruned by the pruner; "+
		"at the end %d members of %d names, %.1f %% garbage, a round found %.1f %% at most",
		hours, d.filled, d.refused, d.expired, evicted, d.purged, d.checked, removed, last.Members, last.Names, 100*last.Ratio(), 100*worst)
	if last.Ratio() > 0.05 {
		t.Errorf("%.1f %% of the index is garbage, want at most 5 %%", 100*last.Ratio())
	}
	if d.expired == 0 || evicted == 0 || d.purged == 0 || d.checked == 0 || last.Members == 0 {
		t.Error("something of it did not happen: the test shows nothing")
	}
}

func fromEnv(t *testing.T, name string, value int) int {
	if s := os.Getenv(name); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return value
}

// fill reads entries through the cache: some that were read before, most new.
func (d *days) fill(n int) {
	t := d.t
	ctx := context.WithoutCancel(t.Context())
	control, err := d.store.Control(ctx, "product")
	if err != nil {
		t.Error(err)
		return
	}
	known := control.Known("product")
	begins := make([]coherence.BeginRequest, n)
	want := make([]held, n)
	r := rand.New(rand.NewPCG(uint64(d.serial), 2)) // d.r is the other goroutine's
	for i := range begins {
		id := d.serial + i
		if r.IntN(4) == 0 {
			id -= r.IntN(1 + min(id, 50*n))
		}
		begins[i] = coherence.BeginRequest{Name: d.name("product:" + itoa(id)), Known: known}
		want[i] = held{
			value: fmt.Sprintf("%d at %d", id, d.serial), tags: [2]int{r.IntN(1 + r.IntN(daysTags)), daysTags + r.IntN(2)}, // some large, two of half of all
			expires: d.now.Add(time.Duration(20+r.IntN(440))*time.Minute).Unix() / 60,
		}
	}
	d.serial += n
	begun, err := d.store.BeginAll(ctx, begins)
	if err != nil {
		t.Errorf("begin: %v", err)
		return
	}
	var regs []coherence.RegisterRequest
	fills := make([]coherence.FillRequest, n)
	for i := range fills {
		fills[i] = coherence.FillRequest{
			Ticket: begun[i].Ticket, TTL: 12 * time.Hour, // of the real clock; expire shortens it
			Payload: append(make([]byte, 1000), want[i].value...), Header: coherence.Header{Codec: coherence.CodecRaw},
		}
		for _, tag := range want[i].tags {
			regs = append(regs, coherence.RegisterRequest{Name: d.name("category:" + itoa(tag)), Member: begins[i].Name, Stamp: fills[i].RegisterStamp()})
		}
	}
	reasons, err := d.store.RegisterAll(ctx, regs)
	if err != nil {
		t.Errorf("register: %v", err)
		return
	}
	var allowed []int
	var accepted []coherence.FillRequest
	for i := range fills {
		if reasons[2*i] == coherence.Stored && reasons[2*i+1] == coherence.Stored {
			allowed, accepted = append(allowed, i), append(accepted, fills[i])
		}
	}
	filled, err := d.store.FillAll(ctx, accepted)
	if err != nil {
		t.Errorf("fill: %v", err)
		return
	}
	d.refused += n - len(allowed)
	for at, i := range allowed {
		if filled[at] != coherence.Stored {
			d.refused++
			continue
		}
		d.filled++
		d.held[begins[i].Name] = want[i]
		d.due[want[i].expires] = append(d.due[want[i].expires], begins[i].Name)
	}
}

// expire lets Redis expire what is due.
func (d *days) expire() {
	minute := d.now.Unix() / 60
	pipe := d.rdb.Pipeline()
	for m := minute - int64(dayTick/time.Minute) + 1; m <= minute; m++ {
		for _, key := range d.due[m] {
			if h, ok := d.held[key]; ok && h.expires == m {
				pipe.PExpire(d.t.Context(), key, time.Millisecond)
				delete(d.held, key)
				d.expired++
			}
		}
		delete(d.due, m)
	}
	if pipe.Len() > 0 {
		if _, err := pipe.Exec(d.t.Context()); err != nil {
			d.t.Fatalf("expire: %v", err)
		}
	}
}

// snapshot is what was filled under each tag before now.
func (d *days) snapshot() map[int]map[string]string {
	all := map[int]map[string]string{}
	for key, h := range d.held {
		for _, tag := range h.tags {
			if all[tag] == nil {
				all[tag] = map[string]string{}
			}
			all[tag][key] = h.value
		}
	}
	return all
}

// purge purges a tag and looks for what was filled under it before.
func (d *days) purge(before map[int]map[string]string) {
	tag := d.r.IntN(daysTags + 2)
	d.commit(update("categories", itoa(tag)))
	d.settle()
	d.purged++
	keys := make([]string, 0, len(before[tag]))
	for key := range before[tag] {
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return
	}
	values, err := d.rdb.MGet(d.t.Context(), keys...).Result()
	if err != nil {
		d.t.Fatal(err)
	}
	for i, v := range values {
		d.checked++
		text, ok := v.(string)
		if !ok {
			continue
		}
		h, payload, err := coherence.Parse([]byte(text))
		if err != nil {
			d.t.Fatalf("%s: %v", keys[i], err)
		}
		if h.State == coherence.StateValue && string(payload[1000:]) == before[tag][keys[i]] {
			d.t.Errorf("%s was filled under tag %d, which was purged, and is still there: %s", keys[i], tag, payload[1000:])
		}
	}
}

// garbage counts what is in the index, and how many of that is dead.
func (d *days) garbage() Pruned {
	var all Pruned
	names := map[coherence.Index]bool{}
	if _, err := d.store.ScanIndexes(d.t.Context(), func(_ context.Context, _ int, found []coherence.Index) error {
		for _, i := range found {
			names[i] = true
		}
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	all.Names = len(names)
	for i := range names {
		members, err := d.rdb.HKeys(d.t.Context(), "lethe:i:"+string(i)).Result()
		if err != nil {
			d.t.Fatal(err)
		}
		pipe := d.rdb.Pipeline()
		var there []*redis.IntCmd
		for _, m := range members {
			there = append(there, pipe.Exists(d.t.Context(), m))
		}
		if _, err := pipe.Exec(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
		all.Members += len(members)
		for _, c := range there {
			all.Garbage += 1 - int(c.Val())
		}
	}
	return all
}
