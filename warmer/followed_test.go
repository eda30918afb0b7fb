package warmer

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// edited is the bundle's set with other text.
func (b *bundle) edited(t testing.TB, from, to string) *rules.Set {
	t.Helper()
	text := strings.ReplaceAll(fillRules, "NS", b.set.Namespace)
	if !strings.Contains(text, from) {
		t.Fatalf("nothing to replace: %q", from)
	}
	return parse(t, strings.Replace(text, from, to, 1))
}

// otherTags gives product other tags, and rules that purge those.
const (
	productTags = `"category:{category_id}"`
	otherTags   = `"name:{name}"`
)

// What a process with older rules fills has the tags that nobody purges any more:
// it must not, nor may one with newer rules before the workers have them.
func TestFillByOtherRules(t *testing.T) {
	t.Parallel()
	const partition = 2 * coherence.PartitionStep
	for name, follow := range map[string]func(t *testing.T, b *bundle, ids, others []uint64){
		"newer": func(t *testing.T, b *bundle, _, others []uint64) {
			leave(t, b, coherence.PartitionStep, others)
		},
		"one partition": func(t *testing.T, b *bundle, ids, others []uint64) {
			leave(t, b, partition, ids)
			leave(t, b, partition+1, others)
			forgetRules(t, b, coherence.PartitionStep)
		},
		"half a map": func(t *testing.T, b *bundle, ids, _ []uint64) {
			leave(t, b, partition, ids)
			forgetRules(t, b, coherence.PartitionStep)
		},
		"nobody": func(t *testing.T, b *bundle, _, _ []uint64) { forgetRules(t, b, coherence.PartitionStep) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.record(t)
			next := b.edited(t, productTags, otherTags)
			follow(t, b, units(b.set), units(next))
			r, err := b.Fill(t.Context(), "product", b.names("product:1", "product:2"), Options{})
			if !errors.Is(err, ErrOtherRules) || r.Stored != 0 {
				t.Errorf("Fill = %+v, %v; want ErrOtherRules", r, err)
			}
			if n := b.rdb.Exists(t.Context(), b.names("product:1")...).Val(); n != 0 {
				t.Error("it was begun, and readers wait for it")
			}
			if got := testutil.ToFloat64(b.Warmer.cfg.Metrics.fills.WithLabelValues("product", "refused", "rules")); got != 2 {
				t.Errorf("%v refused by the metric, want 2", got)
			}
			if name == "newer" { // a class that is alike in both is not concerned
				b.fillOK(t, "raw", Options{}, Result{Stored: 1}, "raw:1")
			}
			b.follow(t)
			forgetRules(t, b, partition)
			forgetRules(t, b, partition+1)
			b.fillOK(t, "product", Options{}, Result{Stored: 1}, "product:1")
		})
	}
}

func units(set *rules.Set) (ids []uint64) {
	for _, u := range set.Units() {
		ids = append(ids, u.ID)
	}
	return ids
}

func leave(t testing.TB, b *bundle, partition int, ids []uint64) {
	t.Helper()
	if _, err := b.store.WriteRules(t.Context(), partition, "test", ids, false); err != nil {
		t.Fatal(err)
	}
}

// forgetRules is how it is where nobody has worked on a partition.
func forgetRules(t testing.TB, b *bundle, partition int) {
	t.Helper()
	if err := b.rdb.HDel(t.Context(), b.store.Layout().Control("rules"), fmt.Sprint(partition)).Err(); err != nil {
		t.Fatal(err)
	}
}

// Between the look at the control data and the ticket all of a reload happens:
// rules struck off, the raise, the walk. Of an exact entry the generation tells;
// a plain one has none, and the walk did not meet its ticket.
func TestFillWhileTheWorkersFollowAReload(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"product", "raw"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.record(t)
			name := b.set.FullName(class + ":1")
			b.Warmer.hook = func(step string) {
				if step != "controlled" {
					return
				}
				next := b.edited(t, productTags, otherTags)
				if class == "raw" {
					next = b.edited(t, "    key: raw:{id}\n", "    key: raw:{id}\n    versions: [1, 2]\n")
				}
				b.followed(t, next)
				if _, err := b.store.Raise(t.Context(), coherence.RaiseRequest{Classes: []string{class}, Cause: "reload"}); err != nil {
					t.Error(err)
				}
				if err := b.store.Walk(t.Context(), []string{b.set.FullName("raw:*")}, nil); err != nil {
					t.Error(err)
				}
			}
			r, err := b.Fill(t.Context(), class, []string{name}, Options{})
			control, controlErr := b.store.Control(t.Context(), class)
			if controlErr != nil {
				t.Fatal(controlErr)
			}
			raw, _ := b.rdb.Get(t.Context(), name).Bytes()
			if class == "raw" {
				if !errors.Is(err, ErrOtherRules) || len(raw) != 0 {
					t.Errorf("Fill = %+v, %v and left %q: the walk is over, and no purge will find it", r, err, raw)
				}
				return
			}
			h, _, err := coherence.Parse(raw)
			if err == nil && h.State == coherence.StateValue && h.Generation == control.Known(class).Generation {
				t.Errorf("it has the generation of the raise and the names %v", h.Names)
			}
		})
	}
}
