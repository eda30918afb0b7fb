package client

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/lethe-cache/lethe/coherence"
)

// purgeWhole does all of a purge, as a worker does.
func (w *world) purgeWhole(p coherence.Purge) {
	w.t.Helper()
	w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
	lists := p.Tags
	if p.All {
		lists = lists[:1]
	}
	for _, tag := range lists {
		members, _, err := w.worker.Members(w.ctx(), tag, 0, 0)
		w.must(err)
		for _, other := range p.Tags[1:] {
			if !p.All {
				break
			}
			in, err := w.worker.Registered(w.ctx(), other, members)
			w.must(err)
			i := -1
			members = slices.DeleteFunc(members, func(string) bool { i++; return !in[i] })
		}
		for _, m := range members {
			_, err := w.worker.Invalidate(w.ctx(), []coherence.Invalidation{{Name: m, X: p.X}})
			w.must(err)
		}
	}
	w.must(w.worker.ClosePurge(w.ctx(), p, w.v))
}

// change is what a worker does for a commit on a row: the entry, and what was
// made from it.
func (w *world) change(key string, x uint64) {
	w.t.Helper()
	w.write(key, x)
	w.purgeWhole(w.purge(x, key))
}

// pages is a world with items, each of which brings a tag of its own and one
// that all have, and the class of what is made from them.
type pages struct {
	*world
	c    *Client
	item *Class[int64]
	page *Class[int64]
}

func newPages(t *testing.T, h hooks) *pages {
	t.Helper()
	w := newWorld(t)
	p := &pages{world: w, c: w.open(Options{}, h)}
	p.item = Entries[int64](p.c, "item", LoadWith(func(_ context.Context, key string, l *Load) (int64, error) {
		l.Tag("of-"+key, "all")
		return w.row.Load(), nil
	}))
	p.page = Entries[int64](p.c, "page")
	w.live(p.c)
	w.must(w.worker.AddNamed(w.ctx(), "item"))
	w.beat(100, 91)
	w.heard(p.c, 91)
	return p
}

// at makes everything that is loaded from now on carry a stamp.
func (p *pages) at(v uint64) {
	p.t.Helper()
	p.beat(v, 91)
	p.heard(p.c, 91)
}

// loader makes a page of items, which says more by itself.
func (p *pages) loader(say func(*Load), items ...string) func(context.Context, *Load) (int64, error) {
	return func(ctx context.Context, l *Load) (sum int64, err error) {
		for _, key := range items {
			v, err := p.item.Get(ctx, key)
			if err != nil {
				return 0, err
			}
			sum += v
		}
		if say != nil {
			say(l)
		}
		return sum, nil
	}
}

// read loads the page, and reports whether it was stored.
func (p *pages) read(load func(context.Context, *Load) (int64, error)) bool {
	p.t.Helper()
	_, err := p.page.Get(p.t.Context(), "page:1", load)
	p.must(err)
	p.c.fills.Wait()
	_, ok := p.header("page:1")
	return ok
}

// A page is cached again after one of its parts was changed and loaded again,
// although the others are of before the change. Its stamp is the least.
func TestCompositeAfterOnePartChanged(t *testing.T) {
	t.Parallel()
	for name, batch := range map[string]bool{"get": false, "batch": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPages(t, hooks{})
			load := p.loader(func(l *Load) { l.Tag("pages") }, "item:1", "item:2")
			read := func() bool { return p.read(load) }
			if batch {
				read = func() bool {
					_, err := p.page.GetMany(t.Context(), []string{"page:1", "page:2"}, func(ctx context.Context, keys []string, b *BatchLoad) (map[string]int64, error) {
						v, err := load(ctx, b.common)
						return map[string]int64{keys[0]: v, keys[len(keys)-1]: v}, err
					})
					p.must(err)
					p.c.fills.Wait()
					_, ok := p.header("page:1")
					return ok
				}
			}
			if !read() {
				t.Fatalf("not cached at all: %v", p.c.Stats().Classes["page"].Refused)
			}
			p.at(300)
			p.change("item:1", 210)
			p.live(p.c)
			if _, ok := p.header("page:1"); ok {
				t.Fatal("the page outlived its part")
			}
			if !read() {
				t.Fatalf("not cached after one part was changed: %v", p.c.Stats().Classes["page"].Refused)
			}
			h, _ := p.header("item:1")
			p.want("stamp of the part that was changed", h.Stamp, at(300))
			h, _ = p.header("page:1")
			p.want("stamp", h.Stamp, at(100))
			// It is found under the names of both parts.
			p.change("item:2", 310)
			if _, ok := p.header("page:1"); ok {
				t.Error("the page outlived its other part")
			}
		})
	}
}

// A part that was read misses a commit whose purge is over before the page is
// registered under the name that the part brought. The load itself, and the
// other part, are of after the commit.
func TestCompositeOfOldPartIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		purge string
		say   func(*Load)
	}{
		"key":                   {purge: "item:1"},
		"key, said as well":     {purge: "item:1", say: func(l *Load) { l.DependsOn("item:1") }},
		"tag":                   {purge: "of-item:1"},
		"tag, said as well":     {purge: "of-item:1", say: func(l *Load) { l.Tag("of-item:1") }},
		"tag of the other part": {purge: "all"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, items := range [][]string{{"item:1", "item:2"}, {"item:2", "item:1"}} {
				var p *pages
				p = newPages(t, hooks{loaded: func(name string) {
					if name == p.name("page:1") {
						p.purgeWhole(p.purge(150, c.purge))
					}
				}})
				p.get(t.Context(), p.item, "item:1") // stamp 100
				p.at(200)
				p.get(t.Context(), p.item, "item:2") // stamp 200
				if p.read(p.loader(c.say, items...)) {
					t.Errorf("parts %v: the page was cached, and its part misses the commit", items)
				}
				p.want("refused by the table", p.c.Stats().Classes["page"].Refused[coherence.RefusedTable.String()], uint64(1))
			}
		})
	}
}

// What the loader says by itself may be about what its parts are made of: a part
// of before the purge keeps the value from being registered.
func TestCompositeOwnNames(t *testing.T) {
	t.Parallel()
	for name, say := range map[string]func(*Load){
		"tag": func(l *Load) { l.Tag("item:9") },
		"key": func(l *Load) { l.DependsOn("item:9") },
	} {
		for x, want := range map[uint64]bool{90: true, 150: false, 250: false} {
			t.Run(fmt.Sprintf("%s, purged at %d", name, x), func(t *testing.T) {
				t.Parallel()
				p := newPages(t, hooks{})
				p.get(t.Context(), p.item, "item:1") // stamp 100
				p.at(200)
				p.purgeWhole(p.purge(x, "item:9"))
				if got := p.read(p.loader(say, "item:1")); got != want {
					t.Errorf("cached: %v, want %v (%v)", got, want, p.c.Stats().Classes["page"].Refused)
				}
			})
		}
	}
}

// A purge of what has two tags looks under the one and asks the other. The part
// with the first misses the commit, the part with the second has it; the purge
// comes between the rounds.
func TestCompositeInPurgeOfAllTags(t *testing.T) {
	t.Parallel()
	for _, order := range [][]string{{"of-item:1", "of-item:2"}, {"of-item:2", "of-item:1"}} {
		var p *pages
		rounds := 0
		p = newPages(t, hooks{registering: func(members []coherence.RegisterRequest) {
			if members[0].Member != p.name("page:1") {
				return
			}
			if rounds++; rounds == 2 {
				all := p.purge(150, order...)
				all.All = true
				p.purgeWhole(all)
			}
		}})
		p.get(t.Context(), p.item, "item:1") // stamp 100
		p.at(200)
		p.get(t.Context(), p.item, "item:2") // stamp 200
		if p.read(p.loader(nil, "item:1", "item:2")) {
			t.Errorf("%v: the page was cached, has both tags and misses the commit", order)
		}
		p.want("rounds", rounds, 2)
	}
}

// Every name that is not of the greatest stamp is registered when those above it
// are; and what has one stamp needs one round.
func TestCompositeRounds(t *testing.T) {
	t.Parallel()
	var p *pages
	var rounds [][]string
	p = newPages(t, hooks{registering: func(members []coherence.RegisterRequest) {
		if members[0].Member != p.name("page:1") {
			return
		}
		var names []string
		for _, m := range members {
			key, _ := p.c.short(m.Name)
			names = append(names, fmt.Sprintf("%s %d", key, m.Stamp.LSN))
		}
		slices.Sort(names)
		rounds = append(rounds, names)
	}})
	p.get(t.Context(), p.item, "item:1")
	p.at(150)
	p.get(t.Context(), p.item, "item:2")
	p.at(200)
	load := p.loader(func(l *Load) { l.Tag("mine") }, "item:1", "item:2", "item:3")
	if !p.read(load) {
		t.Fatalf("not cached: %v", p.c.Stats().Classes["page"].Refused)
	}
	want := [][]string{{"item:2 150", "item:3 200", "of-item:2 150", "of-item:3 200"}, {"all 100", "item:1 100", "item:2 150", "mine 100", "of-item:1 100", "of-item:2 150"}}
	if !slices.EqualFunc(rounds, want, slices.Equal[[]string]) {
		t.Errorf("rounds: got %q, want %q", rounds, want)
	}
	rounds = nil
	for _, key := range []string{"item:1", "item:2", "item:3"} {
		p.change(key, 160)
	}
	p.live(p.c)
	if !p.read(load) {
		t.Fatalf("not cached: %v", p.c.Stats().Classes["page"].Refused)
	}
	p.want("rounds of one stamp", len(rounds), 1)
}

// A standby's composite is held against the table by what was read there, and
// stamped with the least.
func TestCompositeOfStandby(t *testing.T) {
	t.Parallel()
	p := newPages(t, hooks{})
	known := p.c.view.Load().control.Known("page")
	known.V = at(300)
	begun, err := p.worker.Begin(p.ctx(), coherence.BeginRequest{Name: p.name("page:1"), Known: known})
	p.must(err)
	l := &Load{c: p.c, name: p.name("page:1"), known: known, footing: p.c.view.Load().footing, cacheable: true, standby: true}
	l.own.add(at(250))
	l.part(p.item.cl, p.name("item:1"), &meta{stamp: at(100), cacheable: true})
	r, reason := p.page.fillRequest("page:1", 1, false, &permit{ticket: &begun.Ticket, footing: p.c.view.Load().footing}, l, 0)
	p.want("refused", reason, "")
	p.want("from a standby", r.Standby, true)
	p.want("stamp", r.Stamp, at(100))
	p.want("stamp of what was read", r.Own, at(250))
	p.want("stamp of the standby without parts", (&Load{known: known, standby: true, own: lowest{at(310), true}}).stamp(), at(310))
}
