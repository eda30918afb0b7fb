package invalidator

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// follows is a world whose rules can be replaced.
func follows(t *testing.T) (w *world, take func(edit ...string)) {
	var current atomic.Pointer[Rules]
	w = newWorld(t, worldConfig{})
	parse := func(edit ...string) *Rules {
		t.Helper()
		text := fmt.Sprintf(shopRules, w.set.Namespace)
		edited := strings.NewReplacer(edit...).Replace(text)
		if len(edit) > 0 && edited == text {
			t.Fatalf("nothing to replace: %q", edit)
		}
		set, err := rules.Parse("rules.yaml", []byte(edited))
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := NewRules(set)
		if err != nil {
			t.Fatal(err)
		}
		return compiled
	}
	current.Store(parse())
	w.cfg.Rules = current.Load
	return w, func(edit ...string) { current.Store(parse(edit...)) }
}

// newRule makes changes of things touch kept entries too.
var newRule = []string{"  - name: raws\n", "  - name: things of kept\n    table: public.things\n    keys: [ \"kept:{id}\" ]\n  - name: raws\n"}

// What a new rule touches may be from before changes that were not looked at
// with it; what it does not touch stays.
func TestReloadRaisesWhatIsNew(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	w.ready()
	w.cache("kept:1", "v")
	w.cache("product:1", "v")
	w.cache("raw:1", "v")
	w.commit(update("things", "7"))
	w.settle()
	w.wantState("kept:1", "v")
	take(newRule...)
	w.commit(update("things", "8"))
	w.settle()
	w.wantState("kept:1", "dead")
	w.wantState("product:1", "v")
	w.wantState("raw:1", "v")
	w.cache("kept:1", "new")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("kept:1", "absent") // by the rule
	w.cache("kept:1", "new")
	take() // and away again: nothing is newly touched
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("kept:1", "new")
}

// A change of a name, of an owner or of the place in the file touches nothing.
func TestReloadOfTheSameRulesRaisesNothing(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	w.ready()
	for i, edit := range [][]string{{}, {"name: loose", "name: other"}, {"name: raws", "name: raws\n    owner: somebody"}, {"version: 1\n", "version: 1\n# a comment\n"}} {
		w.cache("product:1", "v")
		w.cache("kept:1", "v")
		take(edit...)
		w.commit(update("things", "9"))
		w.settle()
		w.wantState("product:1", "v")
		w.wantState("kept:1", "v")
		if t.Failed() {
			t.Fatalf("edit %d", i)
		}
	}
}

// A restart is a reload: what changed between two processes is raised by the
// second, and a third finds nothing new.
func TestRestartWithOtherRulesRaises(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	r := w.ready()
	w.cache("kept:1", "v")
	w.cache("product:1", "v")
	w.commit(update("things", "7"))
	w.settle()
	restart := func() {
		t.Helper()
		r.stop()
		r.wait()
		w.newLog()
		r = w.ready()
		w.commit(update("loose", "7"))
		w.settle()
	}
	restart()
	w.wantState("kept:1", "v")
	take(newRule...)
	restart()
	w.wantState("kept:1", "dead")
	w.wantState("product:1", "v")
	w.cache("kept:1", "v")
	restart()
	w.wantState("kept:1", "v")
}

// Tags may be carried by entries of any class, so a rule that newly purges some
// forgets everything; so does what a worker of another version has left.
func TestReloadOfTagsRaisesAll(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	w.ready()
	w.cache("kept:1", "v")
	take(`tags: [ "category:{id}" ]`, `tags: [ "category:{id}", "kept:{id}" ]`)
	w.commit(update("loose", "7"))
	w.settle()
	w.wantState("kept:1", "dead")
}

// newPlainRule makes changes of things touch plain entries too.
var newPlainRule = []string{"  - name: raws\n", "  - name: things of raw\n    table: public.things\n    keys: [ \"raw:{id}\" ]\n  - name: raws\n"}

// Plain entries are forgotten by a walk. A worker that dies in it has not told
// anybody that they are: the next one walks again.
func TestDeathInTheWalkOfAReload(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	walk, sweep := newBlocker("walk"), newBlocker("close")
	r := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			walk.hook(step)
			sweep.hook(step)
		}
	})
	w.cache("raw:1", "v")
	w.commit(update("things", "1")) // no rule looks at it for plain entries
	w.settle()
	w.commit(update("categories", "5"))
	sweep.wait(t)
	take(newPlainRule...)
	w.commit(update("loose", "7"))
	walk.wait(t)
	close(sweep.let) // the batch before is done while the walk goes on
	harness.Eventually(t, patience, harness.True("the batch before is acknowledged", func() bool { return w.log.Durable() == w.seq-1 }))
	w.wantState("raw:1", "v")
	r.Hurry()
	close(walk.let)
	r.kill()
	w.newLog()
	w.ready()
	harness.Eventually(t, patience, harness.True("raw:1 forgotten", func() bool { return w.state("raw:1") == "absent" }))
}

// What is no rule any more is struck off in Redis before a change goes by
// without it: a process that works by it again raises it, although the one
// between could not tell by what it worked.
func TestReloadStrikesOffBeforeItWorks(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	take(newRule...)
	r := w.ready()
	w.cache("kept:1", "v")
	key := w.store.Layout().Control("rules")
	had, err := w.rdb.HGetAll(t.Context(), key).Result()
	if err != nil || len(had) != 1 {
		t.Fatalf("%s holds %v, %v; want one partition", key, had, err)
	}
	// Nothing can be written there for a while.
	if err := w.rdb.Set(t.Context(), key, "no hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	take()
	w.commit(update("things", "1"))
	harness.Eventually(t, patience, harness.True("the worker tries to tell", func() bool {
		return testutil.ToFloat64(r.metrics.retries.WithLabelValues("note rules")) > 0
	}))
	if w.log.Durable() >= w.seq {
		t.Error("the change went by although the rule stands in Redis")
	}
	if err := w.rdb.Del(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	if err := w.rdb.HSet(t.Context(), key, had).Err(); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.wantState("kept:1", "v") // no rule is about it
	r.kill()
	take(newRule...)
	w.newLog()
	w.ready()
	w.commit(update("loose", "7"))
	w.settle()
	w.wantState("kept:1", "dead")
}

// Whoever fills entries by rules can see whether the workers follow them: not
// before what they newly touch has been raised, and not any more once a worker
// with others has taken over.
func TestFillersSeeWhichRulesAreFollowed(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	unitsOf := func(class string) []uint64 {
		set := w.cfg.Rules().Plan.Set()
		return set.UnitsOf(set.Class(class))
	}
	followed := func(ids []uint64) bool {
		f, err := w.store.Followed(context.WithoutCancel(t.Context()))
		if err != nil {
			t.Error(err)
		}
		return err == nil && f.All(ids)
	}
	var atRaise atomic.Pointer[func()]
	hook := func(k *Worker) {
		k.hook = func(step string) {
			if f := atRaise.Load(); f != nil && step == "raise" {
				(*f)()
			}
		}
	}
	old, product := unitsOf("kept"), unitsOf("product")
	if followed(old) {
		t.Fatal("followed before anybody works")
	}
	r := w.ready(hook)
	if !followed(old) || !followed(product) {
		t.Fatal("not followed by a worker that is ready")
	}
	take(newRule...)
	next := unitsOf("kept")
	raised := 0
	look := func() {
		raised++
		if followed(next) {
			t.Error("followed before what is new is raised: what is filled now is from before it")
		}
		if !followed(product) {
			t.Error("a class that the reload does not touch can not be filled meanwhile")
		}
	}
	atRaise.Store(&look)
	w.commit(update("loose", "7"))
	w.settle()
	atRaise.Store(nil)
	if raised == 0 || !followed(next) {
		t.Errorf("%d raises; followed after them: %v", raised, followed(next))
	}
	// An older worker takes over, as it may in a deployment that is half done.
	w.cache("kept:1", "by the new rules")
	take()
	r.stop()
	r.wait()
	w.newLog()
	r = w.ready(hook)
	if followed(next) || !followed(old) {
		t.Error("an older worker works, and what is filled by the newer rules is not refused")
	}
	// And the newer one again: what was filled between is forgotten.
	w.cache("kept:1", "by the old rules")
	take(newRule...)
	r.stop()
	r.wait()
	w.newLog()
	w.ready(hook)
	w.commit(update("loose", "7"))
	w.settle()
	w.wantState("kept:1", "dead")
	if !followed(next) {
		t.Error("not followed by the worker that came back")
	}
}

// A worker that is late to leave (a rebalance does not wait for a walk, and one that
// was stopped for a minute knows nothing of it) does not tell by which rules it
// worked when another has the partition by then: that one may work by older
// rules, and what it lets go by the next one has to raise.
func TestLateNoteOfRulesIsRefused(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	before := w.cfg.Rules()
	take(newRule...)
	after := w.cfg.Rules()
	var of atomic.Pointer[Rules]
	var armed atomic.Bool
	of.Store(before)
	w.cfg.Rules = of.Load
	b := newBlocker("watermark")
	late := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if armed.Load() {
				b.hook(step)
			}
		}
	})
	w.commit(update("loose", "7"))
	w.settle()
	armed.Store(true)
	of.Store(after)
	w.commit(update("categories", "5")) // a sweep, so that its watermark is written by itself
	b.wait(t)

	w.newLog()
	w.cfg.Rules = func() *Rules { return before } // a deployment that was rolled back
	r := w.ready()
	w.cache("kept:1", "v")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("kept:1", "v") // none of its rules is about it
	close(b.let)
	late.drain()
	w.commit(update("loose", "8"))
	w.settle()
	r.drain()

	w.newLog()
	w.cfg.Rules = func() *Rules { return after }
	w.ready()
	w.commit(update("loose", "9"))
	w.settle()
	w.wantState("kept:1", "dead")
}

// A Redis that comes back with an earlier state is told again by which rules it
// is worked on.
func TestRedoTellsTheRulesAgain(t *testing.T) {
	t.Parallel()
	var current atomic.Pointer[Rules]
	w, lost := losing(t, lossRules, time.Hour)
	parse := func(text string) *Rules {
		set, err := rules.Parse("rules.yaml", fmt.Appendf(nil, text, w.set.Namespace))
		if err != nil {
			t.Fatal(err)
		}
		compiled, err := NewRules(set)
		if err != nil {
			t.Fatal(err)
		}
		return compiled
	}
	more := lossRules + "  - {name: more, table: public.loose, keys: [\"product:{id}\"]}\n"
	current.Store(parse(more))
	w.cfg.Rules = current.Load
	w.ready()
	key := w.store.Layout().Control("rules")
	had, err := w.rdb.HGetAll(t.Context(), key).Result()
	if err != nil || len(had) != 1 {
		t.Fatalf("%s holds %v, %v; want one partition", key, had, err)
	}
	current.Store(parse(lossRules))
	w.commit(update("products", "10", "n"))
	w.commit(update("products", "11", "n"))
	w.settle()
	want, err := w.rdb.HGetAll(t.Context(), key).Result()
	if err != nil || maps.Equal(want, had) {
		t.Fatalf("%s holds %v, %v after a reload", key, want, err)
	}
	if err := w.rdb.HSet(t.Context(), key, had).Err(); err != nil {
		t.Fatal(err)
	}
	w.forgetWatermark(w.lsn)
	w.commit(update("products", "20", "n"))
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatal("the loss was not noticed")
	}
	if got, err := w.rdb.HGetAll(t.Context(), key).Result(); err != nil || !maps.Equal(got, want) {
		t.Errorf("after the redo %s holds %x, %v; want %x", key, got, err, want)
	}
}
