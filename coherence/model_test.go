package coherence

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// The model of truth: commits on a few keys and tags, flushed in order of LSN,
// visible in any order, invalidated in any order and any number of times after
// they are visible (the gate). Readers of the primary and of a standby that
// lags go through BEGIN, LOAD, REGISTER and FILL one step at a time, between
// anybody else's steps. After every step no usable value may miss a commit
// whose invalidation is over, or that a raise covers, and no stamp may lie.
type commit struct {
	lsn     uint64
	key     int // -1 for a commit on a tag
	tag     int // -1 for a commit on a key
	gap     bool
	visible bool
	done    bool // its invalidation is over
}

type purgeRun struct {
	commit int
	step   int
	left   []string
}

type reader struct {
	name    int
	begun   *Begun
	standby bool
	data    []uint64 // LSNs of the commits that it saw
	stamp   change.Position
	loaded  bool
	refused bool
	regged  bool
}

type world struct {
	*bench
	r       *rand.Rand
	commits []commit
	readers []*reader
	purges  []*purgeRun
	replay  uint64 // the standby has every commit below
	known   Known
	covered uint64 // every commit visible then and below is covered by a raise
	next    uint64
	raises  int
	fills   map[Reason]int
}

const (
	modelKeys = 3
	modelTags = 2
	modelGap  = 100 // between LSNs, more than a commit record
)

func (w *world) key(i int) string { return w.name("key:%d", i) }
func (w *world) tag(i int) string { return w.name("tag:%d", i) }
func tagOf(key int) int           { return key % modelTags }

// v is the end of the prefix that is visible (and so handed on).
func (w *world) v() uint64 {
	for _, c := range w.commits {
		if !c.visible {
			return c.lsn
		}
	}
	return w.next
}

// concerns reports whether a commit changes what a key's value is made of.
func (c *commit) concerns(key int) bool { return c.key == key || c.tag == tagOf(key) }

func (w *world) pick(ok func(c *commit) bool) int {
	var at []int
	for i := range w.commits {
		if ok(&w.commits[i]) {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return -1
	}
	return at[w.r.IntN(len(at))]
}

// step does one thing.
func (w *world) step() string {
	switch n := w.r.IntN(100); {
	case n < 12:
		c := commit{lsn: w.next, key: -1, tag: -1, gap: w.r.IntN(8) == 0}
		if w.r.IntN(3) == 0 {
			c.tag = w.r.IntN(modelTags)
		} else {
			c.key = w.r.IntN(modelKeys)
		}
		w.commits = append(w.commits, c)
		w.next += modelGap
		return fmt.Sprintf("commit %+v", c)
	case n < 24:
		if i := w.pick(func(c *commit) bool { return !c.visible }); i >= 0 {
			w.commits[i].visible = true
			return fmt.Sprintf("visible %d", w.commits[i].lsn)
		}
	case n < 30:
		if w.replay < w.next {
			w.replay += modelGap
			return fmt.Sprintf("standby at %d", w.replay)
		}
	case n < 42:
		return w.apply()
	case n < 50:
		return w.purge()
	case n < 52:
		return w.raiseGap()
	case n < 56:
		w.known = w.refresh()
		return "reader learns"
	case n < 58:
		return w.fault()
	default:
		return w.read()
	}
	return "nothing"
}

func (w *world) apply() string {
	i := w.pick(func(c *commit) bool { return c.visible && !c.gap && c.key >= 0 })
	if i < 0 {
		return "nothing"
	}
	c := &w.commits[i]
	batch := []Invalidation{{Name: w.key(c.key), X: at(c.lsn), Action: Action(w.r.IntN(4))}}
	if j := w.pick(func(c *commit) bool { return c.visible && !c.gap && c.key >= 0 }); w.r.IntN(2) == 0 {
		batch = append(batch, Invalidation{Name: w.key(w.commits[j].key), X: at(w.commits[j].lsn), Action: Action(w.r.IntN(4))})
		w.commits[j].done = true
	}
	w.invalidate(batch...)
	c.done = true
	return fmt.Sprintf("apply %+v", batch)
}

func (w *world) purge() string {
	if len(w.purges) == 0 || w.r.IntN(3) == 0 {
		if i := w.pick(func(c *commit) bool { return c.visible && !c.gap && c.tag >= 0 }); i >= 0 {
			w.purges = append(w.purges, &purgeRun{commit: i})
		}
	}
	if len(w.purges) == 0 {
		return "nothing"
	}
	i := w.r.IntN(len(w.purges))
	run := w.purges[i]
	c := &w.commits[run.commit]
	p := Purge{X: at(c.lsn), Tags: []string{w.tag(c.tag)}}
	if w.r.IntN(10) == 0 {
		w.purges = slices.Delete(w.purges, i, i+1)
		return "a worker dies in a purge"
	}
	run.step++
	switch {
	case run.step == 1:
		w.bench.open(p)
	case run.step == 2:
		run.left = w.members(p.Tags[0])
	case len(run.left) > 0:
		w.invalidate(Invalidation{Name: run.left[0], X: p.X, Action: Action(w.r.IntN(4))})
		run.left = run.left[1:]
	default:
		w.bench.close(p)
		c.done = true
		w.purges = slices.Delete(w.purges, i, i+1)
	}
	return fmt.Sprintf("purge of %d, step %d", c.lsn, run.step)
}

// raiseGap is a slot that was lost: its commits come through no log, and when
// the last of them is visible the generation is raised for the second time.
func (w *world) raiseGap() string {
	if w.pick(func(c *commit) bool { return c.gap && !c.visible }) >= 0 {
		return "nothing"
	}
	w.raises++
	_, err := w.Raise(w.ctx(), RaiseRequest{
		Cause: "gap " + strconv.Itoa(w.raises), Classes: []string{"class"}, Bound: at(w.next - 1),
	})
	must(w.t, err)
	w.covered = w.next
	return fmt.Sprintf("raise, bound %d", w.next-1)
}

func (w *world) refresh() Known {
	k := w.control("class").Known("class")
	k.V = at(w.v())
	return k
}

// fault takes something away that a cache may lose.
func (w *world) fault() string {
	switch i := w.r.IntN(modelKeys); w.r.IntN(3) {
	case 0:
		must(w.t, w.rdb.Del(w.ctx(), w.key(i)).Err())
		return fmt.Sprintf("evict %d", i)
	case 1:
		cell, _ := w.Layout().Cell([]string{w.key(i), w.tag(i % modelTags), "floor"}[w.r.IntN(3)])
		must(w.t, w.rdb.Del(w.ctx(), cell).Err())
		return "evict a cell"
	default:
		// After the loss of a cell nothing below the insert LSN may pass.
		insert := at(w.next + 40)
		_, err := w.Seed(w.ctx(), func(context.Context) (change.Position, error) { return insert, nil })
		must(w.t, err)
		return fmt.Sprintf("seed at %v", insert)
	}
}

func (w *world) read() string {
	if len(w.readers) < 3 {
		w.readers = append(w.readers, &reader{name: w.r.IntN(modelKeys), standby: w.r.IntN(2) == 0})
	}
	i := w.r.IntN(len(w.readers))
	r := w.readers[i]
	key := w.key(r.name)
	switch {
	case r.begun == nil:
		b := w.begin(key, w.known)
		r.begun = &b
		return fmt.Sprintf("begin %d with %+v", r.name, w.known)
	case !r.loaded:
		r.loaded = true
		r.stamp = r.begun.Ticket.Known.V
		if r.standby {
			r.stamp = at(w.replay)
		}
		r.data = []uint64{}
		for _, c := range w.commits {
			if seen := c.visible; c.concerns(r.name) && (r.standby && c.lsn < w.replay || !r.standby && seen) {
				r.data = append(r.data, c.lsn)
			}
		}
		return fmt.Sprintf("load %d (standby %v): %v", r.name, r.standby, r.data)
	case !r.regged:
		r.regged = true
		r.refused = w.register(w.tag(tagOf(r.name)), key, uint64(r.stamp.LSN)) != Stored
		return fmt.Sprintf("register %d: refused %v", r.name, r.refused)
	}
	w.readers = slices.Delete(w.readers, i, i+1)
	if r.refused {
		return "not filled"
	}
	payload, err := json.Marshal(r.data)
	must(w.t, err)
	got := w.fill(FillRequest{Ticket: r.begun.Ticket, Standby: r.standby, Stamp: r.stamp, Payload: payload, TTL: time.Hour})
	w.fills[got]++
	return fmt.Sprintf("fill %d: %v", r.name, got)
}

// check looks for what must not be.
func (w *world) check() error {
	generation := w.control("class").Known("class").Generation
	for i := range modelKeys {
		raw, err := w.rdb.Get(w.ctx(), w.key(i)).Bytes()
		if err != nil {
			continue
		}
		h, payload, err := Parse(raw)
		if err != nil {
			return err
		}
		if h.State != StateValue || h.Generation != generation {
			continue
		}
		var data []uint64
		if err := json.Unmarshal(payload, &data); err != nil {
			return err
		}
		for _, c := range w.commits {
			if !c.concerns(i) || slices.Contains(data, c.lsn) {
				continue
			}
			if c.done {
				return fmt.Errorf("key %d is stale: %v misses %d, whose invalidation is over", i, data, c.lsn)
			}
			if c.gap && c.lsn < w.covered {
				return fmt.Errorf("key %d is stale: %v misses %d of the gap, and its generation is current", i, data, c.lsn)
			}
			if h.Stamp.Covers(at(c.lsn)) {
				return fmt.Errorf("key %d: stamp %v lies, %v misses %d", i, h.Stamp, data, c.lsn)
			}
		}
	}
	return nil
}

// The seeds are fixed; LETHE_TEST_SEED runs one, LETHE_TEST_SEEDS that many.
func TestSimRandomSchedules(t *testing.T) {
	t.Parallel()
	seeds, first := 25, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("LETHE_TEST_SEEDS")); err == nil {
		seeds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("LETHE_TEST_SEED"), 10, 64); err == nil {
		seeds, first = 1, n
	}
	for _, kind := range []string{onRedis, onLegacy, onMini} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			fills := make(map[Reason]int)
			for seed := first; seed < first+uint64(seeds); seed++ {
				simulate(t, kind, seed, fills)
			}
			t.Logf("fills: %v", fills)
			if seeds < 10 {
				return
			}
			for _, r := range []Reason{Stored, RefusedAbsent, RefusedIncarnation, RefusedTable, RefusedClosed, RefusedBound} {
				if fills[r] == 0 {
					t.Errorf("no schedule ended in %v: they show nothing of it", r)
				}
			}
		})
	}
}

func simulate(t *testing.T, kind string, seed uint64, fills map[Reason]int) {
	r := rand.New(rand.NewPCG(seed, 1))
	coarse := -1
	if r.IntN(3) == 0 {
		coarse = 2
	}
	w := &world{bench: open(t, kind, Options{CoarseBatch: coarse}), r: r, next: 1000, replay: 1000, fills: fills}
	seeded(w.bench)
	w.known = w.refresh()
	var history []string
	for range 250 {
		history = append(history, w.step())
		if err := w.check(); err != nil {
			tail := history[max(0, len(history)-60):]
			for _, h := range tail {
				t.Log(h)
			}
			t.Fatalf("seed %d, step %d: %v", seed, len(history), err)
		}
	}
	must(t, w.Close())
}
