package coherence

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// A scan finds the index of every form of name, and of no namespace that does
// not begin like its own.
func TestScanIndexesFindsEveryFormOfName(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		var want []Index
		for _, tag := range []string{"category:7", "a:{b}:c", "odd}name", "{:", "", "star*[x]?\\"} {
			tag = b.name("%s", tag)
			if got := b.register(tag, b.name("k"), 100); got != Stored {
				t.Fatalf("register %q: %v", tag, got)
			}
			want = append(want, b.layout.index(tag))
			if n := b.rdb.Exists(b.ctx(), b.layout.index(tag).key(), b.layout.index(tag).header()).Val(); n != 2 {
				t.Errorf("%q has %d of index and header", tag, n)
			}
		}
		other := seeded(b.beside(b.Layout().Namespace() + "x"))
		other.register(other.name("category:7"), other.name("k"), 100)
		var found []Index
		complete, err := b.ScanIndexes(b.ctx(), func(_ context.Context, _ int, i []Index) error {
			found = append(found, i...)
			return nil
		})
		if err != nil || !complete {
			t.Fatalf("complete %v, %v", complete, err)
		}
		slices.Sort(found)
		slices.Sort(want)
		if found = slices.Compact(found); !slices.Equal(found, want) {
			t.Errorf("found\n%q, want\n%q", found, want)
		}
		stats, err := b.IndexStats(b.ctx(), found, func(int) bool { return true })
		must(t, err)
		for i, s := range stats {
			if s.Members != 1 || s.Bytes <= 0 {
				t.Errorf("%q has %+v", found[i], s)
			}
		}
	})
}

// beside is a Store of another namespace on the same server.
func (b *bench) beside(namespace string) *bench {
	other := &bench{t: b.t, mini: b.mini}
	other.dial("redis://"+b.rdb.Options().Addr, Options{Namespace: namespace, RunID: b.opts.RunID})
	other.legacy, other.setGet = b.legacy, b.setGet
	return other
}

func TestLayoutOwns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		namespace, of, name string
		want                bool
	}{
		{"shop", "shop", "category:7", true},
		{"shop", "shop", "odd}name", true},
		{"shop", "shop", "{a}:b", true},
		{"shop", "shop2", "category:7", false},
		{"shop", "", "category:7", false},
		{"shop", "", "{1}:shop:a", true}, // as one of shop's might be
		{"shop", "shop:eu", "category:7", true},
		{"shop:eu", "shop", "category:7", false},
		{"", "shop", "category:7", true},
	} {
		i := NewLayout(c.of, false).index(NewLayout(c.of, false).Name(c.name))
		if got := NewLayout(c.namespace, false).owns(i); got != c.want {
			t.Errorf("namespace %q owns %q of namespace %q: %v, want %v", c.namespace, c.name, c.of, got, c.want)
		}
	}
}

// A page of a sample can be pruned like one of an enumeration.
func TestSamplePageIsPruned(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		tag := b.name("category:7")
		for i := range 20 {
			b.register(tag, b.name("product:%d", i), 100)
		}
		b.put(b.name("product:3"), 100)
		p, err := b.SamplePage(b.ctx(), b.layout.index(tag), 50)
		must(t, err)
		if len(p.Members) != 20 {
			t.Fatalf("%d members of 20 in a sample of 50", len(p.Members))
		}
		gone, removed, err := b.PrunePages(b.ctx(), p)
		if err != nil || gone != 19 || removed != 19 {
			t.Errorf("gone %d, removed %d (%v), want 19 and 19", gone, removed, err)
		}
		if got, want := b.members(tag), []string{b.name("product:3")}; !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	})
}

// A master that does not answer has not said that an entry is gone: nothing is
// removed then, of no page, also not of members that lie elsewhere.
func TestPruneOfASilentMasterRemovesNothing(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 3)
	s := clustered(t, cluster)
	tag := s.Layout().Name("category:7")
	var regs []RegisterRequest
	for i := range 60 { // in slots of every master
		regs = append(regs, RegisterRequest{Name: tag, Member: s.Layout().Name(fmt.Sprintf("product:%d", i)), Stamp: at(100)})
	}
	reasons, err := s.RegisterAll(t.Context(), regs)
	must(t, err)
	if reasons[0] != Stored {
		t.Fatal(reasons[0])
	}
	var found []Index
	var mu sync.Mutex // of the masters' goroutines
	complete, err := s.ScanIndexes(t.Context(), func(_ context.Context, _ int, i []Index) error {
		mu.Lock()
		defer mu.Unlock()
		found = append(found, i...) // one of the masters has one
		return nil
	})
	if err != nil || !complete || !slices.Equal(found, []Index{s.layout.index(tag)}) {
		t.Fatalf("found %q, complete %v (%v)", found, complete, err)
	}
	page, err := s.MemberPage(t.Context(), tag, 0, 1000)
	must(t, err)
	if len(page.Members) != 60 {
		t.Fatalf("%d members", len(page.Members))
	}
	home := Slot(tag) * 3 / Slots // the masters divide the slots evenly
	cluster.Masters[(home+1)%3].Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if gone, removed, err := s.PrunePages(ctx, page); err == nil || removed != 0 {
		t.Errorf("gone %d, removed %d (%v), want an error", gone, removed, err)
	}
	// A cluster without one of its masters may not answer at all.
	if n, err := s.MemberCount(t.Context(), tag); err == nil && n != 60 {
		t.Errorf("%d members are left, want all", n)
	}
}
