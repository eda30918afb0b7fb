package invalidator

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// asked keeps what a worker asks to be filled again.
type asked struct {
	mu     sync.Mutex
	list   []Rewarm
	left   int
	chosen bool
	// at is called with each call of Rewarm.
	at func(Rewarm)
}

func (a *asked) Chosen(*rules.Class) bool { return a.chosen }

func (a *asked) Rewarm(list []Rewarm) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range list {
		if a.at != nil {
			a.at(r)
		}
	}
	a.list = append(a.list, list...)
}

func (a *asked) Left(_ *rules.Class, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left += n
}

// take returns what was asked for, in the order of the names.
func (a *asked) take() []Rewarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.list
	a.list = nil
	slices.SortFunc(list, func(x, y Rewarm) int { return cmp.Compare(x.Name, y.Name) })
	return list
}

const rewarmRules = `
version: 1
namespace: %s
entries:
  product:
    key: product:{id}
    versions: [1, 3]
    load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}
    tags: [ "category:{category_id}" ]
  soft:
    key: soft:{id}
    stale_for: 1m
    load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}
  raw:
    key: raw:{id}
    mode: plain
    load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}
  bare:
    key: bare:{id}
rules:
  - {name: product, table: public.products, keys: [ "product:{id}", "bare:{id}" ], action: rewarm, if: present, debounce: 1s}
  - {name: raw, table: public.raws, keys: [ "raw:{id}" ], action: rewarm}
  - {name: soft, table: public.hints, keys: [ "soft:{id}" ], action: auto}
  - {name: category, table: public.categories, tags: [ "category:{id}" ], action: rewarm}
  - {name: things, table: public.things, keys: [ "product:{id}" ]}
dependencies:
  - {of: "raw:{id}", also: [ "soft:{id}", "bare:{id}" ]}
`

func rewarmWorld(t *testing.T, a *asked, cfg func(*Config)) *world {
	t.Helper()
	return newWorld(t, worldConfig{rules: rewarmRules, cfg: func(c *Config) {
		c.Rewarmer = a
		if cfg != nil {
			cfg(c)
		}
	}})
}

// wantAsked compares what was asked for, without namespace and positions.
func wantAsked(t *testing.T, w *world, got []Rewarm, want ...Rewarm) {
	t.Helper()
	prefix := w.name("")
	for i := range got {
		if got[i].X.IsZero() {
			t.Errorf("%q has no position", got[i].Name)
		}
		if class := w.set.ClassOf([]byte(got[i].Name)); got[i].Class != class {
			t.Errorf("%q is of class %v, want %v", got[i].Name, got[i].Class, class)
		}
		got[i].Name, got[i].X, got[i].Class = strings.TrimPrefix(got[i].Name, prefix), change.Position{}, nil
	}
	if !slices.Equal(got, want) {
		t.Errorf("asked for %+v\nwant %+v", got, want)
	}
}

func TestRewarmAsksWithWhatWasThere(t *testing.T) {
	t.Parallel()
	a := &asked{}
	w := rewarmWorld(t, a, nil)
	w.ready()
	w.cache("product:1", "one", "category:9")
	w.cache("raw:1", "one")
	w.commit(update("products", "1", "x"), update("products", "2", "x"), update("things", "1"), update("products", "1", "y"))
	w.settle()
	wantAsked(t, w, a.take(),
		Rewarm{Name: "product:1", If: rules.IfPresent, Delay: time.Second, Outcome: coherence.OutcomeDeleted},
		Rewarm{Name: "product:2", If: rules.IfPresent, Delay: time.Second, Outcome: coherence.OutcomeAbsent})
	// By the cascade too, as far as anything can be loaded.
	w.commit(update("raws", "1"))
	w.settle()
	wantAsked(t, w, a.take(),
		Rewarm{Name: "raw:1", Outcome: coherence.OutcomeDeleted},
		Rewarm{Name: "soft:1", Outcome: coherence.OutcomeAbsent})
	// A rule that deletes asks for nothing, of the same class too.
	w.commit(update("things", "1"))
	w.settle()
	wantAsked(t, w, a.take())
}

// Whoever is asked to fill an entry again finds L2 without the old value, and
// the message that says so behind the ones before.
func TestRewarmAsksAfterL2AndBroadcast(t *testing.T) {
	t.Parallel()
	a := &asked{}
	w := rewarmWorld(t, a, nil)
	w.ready()
	var problems []string
	a.at = func(r Rewarm) {
		if s, err := w.look("raw:1"); err != nil || s != "absent" {
			problems = append(problems, "raw:1 is "+s)
		}
		told := false
		for _, m := range w.messages() {
			told = told || m.Kind == coherence.KindKeys && slices.Contains(m.Names, w.name("raw:1"))
		}
		if !told {
			problems = append(problems, r.Name+": not broadcast yet")
		}
	}
	w.cache("raw:1", "one")
	w.commit(update("raws", "1"))
	w.settle()
	if got := a.take(); len(got) == 0 || len(problems) > 0 {
		t.Errorf("asked for %v, problems %q", got, problems)
	}
}

func TestRewarmKeepsStaleWhereAllowed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		chosen bool
		rule   string
		state  string
	}{
		{"Rewarm", false, "raws", "stale"},
		{"AutoThatRewarms", true, "hints", "stale"},
		{"AutoThatDeletes", false, "hints", "absent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := &asked{chosen: test.chosen}
			w := rewarmWorld(t, a, nil)
			w.ready()
			w.cache("soft:1", "one")
			w.commit(update(test.rule, "1"))
			w.settle()
			w.wantState("soft:1", test.state)
			if got := a.take(); len(got) == 0 {
				t.Error("nothing was asked for")
			}
		})
	}
	t.Run("NobodyRewarms", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, worldConfig{rules: rewarmRules})
		w.ready()
		w.cache("soft:1", "one")
		w.commit(update("raws", "1"))
		w.settle()
		w.wantState("soft:1", "absent")
	})
}

// A purge asks for its members, and not for more than its share of them.
func TestRewarmOfAPurgeIsBounded(t *testing.T) {
	t.Parallel()
	a := &asked{}
	w := rewarmWorld(t, a, func(c *Config) { c.SweepRewarms, c.SweepBatch = 3, 2 })
	w.ready()
	for _, n := range []string{"1", "2", "3", "4", "5"} {
		w.cache("product:"+n, n, "category:9")
	}
	w.cache("bare:1", "one", "category:9")
	w.commit(update("categories", "9"))
	w.settle()
	got := a.take()
	for _, r := range got {
		if r.Class.Name != "product" || r.If != rules.IfAlways || r.Outcome != coherence.OutcomeDeleted {
			t.Errorf("asked for %+v", r)
		}
	}
	if len(got) != 3 || a.left != 2 {
		t.Errorf("asked for %d entries and left %d, want 3 and 2", len(got), a.left)
	}
	for _, n := range []string{"product:1", "product:5", "bare:1"} {
		w.wantState(n, "absent")
	}
}

// Under an unknown source nothing would be stored.
func TestRewarmNeedsASource(t *testing.T) {
	t.Parallel()
	a := &asked{}
	w := rewarmWorld(t, a, nil)
	w.ready()
	w.source = change.Source{}
	w.commit(update("raws", "1"))
	harness.Eventually(t, patience, harness.True("the era is unknown", func() bool {
		src, err := w.store.Source(t.Context())
		return err == nil && src.SystemID == 0
	}))
	w.settle()
	if got := a.take(); len(got) != 0 {
		t.Errorf("asked for %v", got)
	}
}
