package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// TestHistory is described in the package's documentation.
func TestHistory(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("LETHE_HISTORY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	seconds := 10
	if text := os.Getenv("LETHE_HISTORY_SECONDS"); text != "" {
		var err error
		if seconds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LETHE_HISTORY_SEED=%d LETHE_HISTORY_SECONDS=%d", seed, seconds)
	w := newWorld(t, seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("faults:\n%s", strings.Join(w.events, "\n"))
		}
	})
	watching, unwatch := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { w.watch(watching) })
	defer watch.Wait()
	defer unwatch()

	faults, over := context.WithTimeout(t.Context(), time.Duration(seconds)*time.Second)
	defer over()
	w.nemesis(faults, seed)
	// In peace: what is stale now and is not written any more stays to be seen.
	pause(t.Context(), phase)
	for _, r := range w.agents {
		r.ask("stop")
	}
	w.quiesce()
	unwatch()
	watch.Wait()
	w.equalsDatabase()
	w.end()
	w.report()
}

// quiesce waits until everything that was written is invalidated and replayed,
// and every client hears the broadcast.
func (w *world) quiesce() {
	w.t.Helper()
	last, err := w.written(w.t.Context())
	w.must(err)
	harness.Eventually(w.t, time.Minute, func() error {
		// The log has to go on for positions to pass the last write.
		_, err := w.admin.Exec(w.t.Context(), "SELECT pg_logical_emit_message(true, 'history', '')")
		mark, err2 := w.watermark(w.t.Context())
		behind, err3 := w.replayed(w.t.Context())
		if err := errors.Join(err, err2, err3); err != nil {
			return err
		}
		if mark <= last || behind <= last {
			return fmt.Errorf("the watermark is %v, the standby at %v, the last write below %v", mark, behind, last)
		}
		return nil
	})
	for _, r := range w.agents {
		harness.Eventually(w.t, 20*time.Second, func() error {
			if answer := r.ask("state"); !answer.Live {
				return fmt.Errorf("client %d is %v", r.ID, answer.Stats.State)
			}
			return nil
		})
	}
	// Whoever is live has handled all that was sent 1.5 s ago.
	pause(w.t.Context(), Life)
}

// equalsDatabase compares every entry in Redis, and everything that clients
// read, with the database.
func (w *world) equalsDatabase() {
	w.t.Helper()
	truth := map[int]int64{}
	rows, err := w.admin.Query(w.t.Context(), "SELECT id, n FROM item")
	w.must(err)
	for rows.Next() {
		var (
			id int
			n  int64
		)
		w.must(rows.Scan(&id, &n))
		truth[id] = n
	}
	w.must(rows.Err())
	entries := w.redisEquals(truth)
	w.mu.Lock()
	before := len(w.history.Ops)
	w.mu.Unlock()
	hits := uint64(0)
	for _, r := range w.agents {
		was, is := r.ask("state").Stats, r.ask("read").Stats
		for class := range is.Classes {
			hits += is.Classes[class].L1Hits - was.Classes[class].L1Hits
		}
	}
	w.mu.Lock()
	for _, o := range w.history.Ops[before:] {
		if n, there := truth[o.Row]; there == o.Absent || there && n != o.N {
			w.t.Errorf("after everything is over the database has %d (%v), and client %d reads: %s", n, there, o.Client, o.line(w.began))
		}
	}
	w.mu.Unlock()
	w.redisEquals(truth)
	if entries == 0 || hits == 0 {
		w.t.Errorf("%d entries in redis and %d hits in L1 were compared: the run shows nothing", entries, hits)
	}
	w.t.Logf("%d entries in redis and %d hits in L1 equal the database", entries, hits)
}

// redisEquals compares what is in Redis and would be served. It returns how
// many entries there are.
func (w *world) redisEquals(truth map[int]int64) (entries int) {
	w.t.Helper()
	ctx := w.t.Context()
	known, err := w.control(ctx, "item", "list", "page")
	w.must(err)
	err = w.atRedis(ctx, func(ctx context.Context, rdb *redis.Client) error {
		for _, class := range []string{"item", "list", "page"} {
			for it := rdb.Scan(ctx, 0, namespace+":"+class+":*", 1000).Iterator(); it.Next(ctx); {
				raw, err := rdb.Get(ctx, it.Val()).Bytes()
				if errors.Is(err, redis.Nil) {
					continue
				}
				if err != nil {
					return err
				}
				h, payload, err := coherence.Parse(raw)
				if err != nil {
					return fmt.Errorf("entry %s: %w", it.Val(), err)
				}
				if h.State != coherence.StateValue || !current(known, class, &h) {
					continue
				}
				entries++
				if fault := compare(class, strings.TrimPrefix(it.Val(), namespace+":"), &h, payload, truth); fault != "" {
					w.t.Errorf("after everything is over redis has a stale entry: %s", fault)
				}
			}
		}
		return nil
	})
	w.must(err)
	return entries
}

func current(known *coherence.ControlState, class string, h *coherence.Header) bool {
	if known.Known(class).Generation != h.Generation {
		return false
	}
	for _, n := range h.Names {
		if n.Kind == coherence.NameClass && known.Known(n.Name).Generation != n.Generation {
			return false
		}
	}
	return true
}

// compare says what an entry has that the database has not.
func compare(class, key string, h *coherence.Header, payload []byte, truth map[int]int64) string {
	var number int
	if _, err := fmt.Sscanf(key, class+":%d", &number); err != nil {
		return key + ": " + err.Error()
	}
	got, want := map[int]int64{}, map[int]int64{}
	var err error
	switch class {
	case "item":
		if n, ok := truth[number]; ok {
			want[number] = n
		}
		if h.Flags&coherence.FlagNegative == 0 {
			var v item
			err = json.Unmarshal(payload, &v)
			got[number] = v.N
		}
	case "list":
		for row, n := range truth {
			if group(row) == number {
				want[row] = n
			}
		}
		var v list
		err = json.Unmarshal(payload, &v)
		got = v.N
	case "page":
		var v page
		err = json.Unmarshal(payload, &v)
		for i, row := range partsOf(number) {
			if n, ok := truth[row]; ok {
				want[row] = n
			}
			if v.Parts[i] != nil && v.Parts[i].N >= 0 {
				got[row] = v.Parts[i].N
			}
		}
	}
	if err != nil {
		return key + ": " + err.Error()
	}
	if !maps.Equal(got, want) {
		return fmt.Sprintf("%s has %v, the database %v (stamp %v, standby's or not: %s)", key, got, want, h.Stamp, payload)
	}
	return ""
}

// report judges the history and says what it was made of.
func (w *world) report() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range w.failed {
		if i == 10 {
			w.t.Errorf("... and %d failures more", len(w.failed)-i)
			break
		}
		w.t.Error(f)
	}
	faults := w.history.Check()
	for i, f := range faults {
		if i == 5 {
			w.t.Errorf("... and %d faults more", len(faults)-i)
			break
		}
		w.t.Error(f)
	}
	kinds, linear, harmed, cached := map[string]int{}, 0, 0, 0
	for i := range w.history.Ops {
		o := &w.history.Ops[i]
		kinds[o.Kind]++
		if o.After && strict(o.Row) {
			linear++
		}
		if !o.Write && o.Load != nil && o.Load.End < o.Start {
			cached++
		}
	}
	for _, r := range w.agents {
		harmed += r.messages.Harmed()
	}
	w.t.Logf("%d operations %v, %d from a cache, %d under tokens of strict rows, %d faults, %d messages harmed", len(w.history.Ops), kinds, cached, linear, len(w.events), harmed)
	if kinds["write"] == 0 || cached == 0 || linear == 0 || len(w.events) == 0 {
		w.t.Error("the run shows nothing")
	}
}
