package invalidator

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

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
