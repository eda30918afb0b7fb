package invalidator

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

// declaring is what the table of dependencies is to a worker: rules that change
// when the worker is told.
type declaring struct {
	mu     sync.Mutex
	causes []string
	fail   int // so many calls fail first
	take   func()
}

func (d *declaring) learn(_ context.Context, cause string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.causes = append(d.causes, cause)
	if d.fail > 0 {
		d.fail--
		return errors.New("the database is away")
	}
	if d.take != nil {
		d.take()
	}
	return nil
}

func (d *declaring) told() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.causes...)
}

// keptOfThings is a declared dependency: things take kept entries along.
var keptOfThings = []string{"rules:\n", "dependencies:\n  - {of: \"thing:{id}\", also: [\"kept:{id}\"]}\nrules:\n"}

// News of the table of dependencies are taken before anything of the batch is
// worked on, by whatever partition meets them: what stands beside them, before
// and behind, is looked at with the new dependencies, and what these touch is
// forgotten.
func TestDependenciesAreLearnedBeforeTheBatch(t *testing.T) {
	t.Parallel()
	w, take := follows(t)
	d := &declaring{fail: 2}
	d.take = func() { take(keptOfThings...) }
	w.cfg.Dependencies = d.learn
	w.ready()
	if told := d.told(); len(told) != 0 {
		t.Fatalf("told %q before anything happened", told)
	}
	w.cache("kept:1", "v")
	w.cache("product:1", "v")
	w.hand(w.lsn+60, w.nextCommit(logical(`{"keys": ["thing:2"]}`)),
		change.Raise{Cause: "dependencies:1", Reason: change.ReasonDependencies})
	w.settle()
	w.wantState("kept:1", "dead") // from before the dependency
	w.wantState("product:1", "v")
	w.cache("kept:1", "new")
	w.commit(logical(`{"keys": ["thing:1"]}`))
	w.settle()
	w.wantState("kept:1", "absent") // by it
	if told := d.told(); len(told) != 3 || told[2] != "dependencies:1" {
		t.Errorf("told %q, want thrice of one cause: a failure is repeated", told)
	}
}

// Whatever raises everything may have hidden the news; what raises some classes
// has not.
func TestDependenciesAreLearnedAfterALoss(t *testing.T) {
	t.Parallel()
	w, _ := follows(t)
	d := &declaring{}
	w.cfg.Dependencies = d.learn
	w.ready()
	w.hand(w.lsn+60, nil, change.Raise{Cause: "some", Reason: change.ReasonManual, Classes: []string{"kept"}})
	w.settle()
	if told := d.told(); len(told) != 0 {
		t.Errorf("told %q of a raise of one class", told)
	}
	w.hand(w.lsn+120, nil, change.Raise{Cause: "slot", Reason: change.ReasonSlotLost, Classes: []string{"*"}})
	w.settle()
	if told := d.told(); len(told) != 1 || told[0] != "slot" {
		t.Errorf("told %q, want of the lost slot", told)
	}
}

func logical(content string) change.Change {
	return change.Change{Op: change.Message, Prefix: "lethe", Content: []byte(content)}
}

// Static and dynamic dependencies are one cascade: a key that a dependency of the
// rules leads to, be it of a form or one name, is a name of the values that were
// made of it (DependsOn), and takes them along, at whatever depth, also where it
// is kept stale itself. So does a tag.
func TestCascadeReachesWhatKeysWereMadeOf(t *testing.T) {
	t.Parallel()
	const edges = `dependencies:
  - {of: "product:{id}", also: ["kept:{id}"]}
  - {of: "kept:1", also: ["kept:all", "brand:b"], when: 'op == "update"'}
`
	for name, cascade := range map[string]string{"default": "", "stale beyond": "    cascade: {depth: 3, stale_beyond: 0}\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(shopRules, "rules:\n", edges+"rules:\n", 1)
			text = strings.Replace(text, "    table: public.things\n", "    table: public.things\n"+cascade, 1)
			w := newWorld(t, worldConfig{rules: text})
			if err := w.store.AddNamed(t.Context(), "kept"); err != nil {
				t.Fatal(err)
			}
			w.ready()
			w.cache("kept:1", "v")
			w.cache("kept:all", "v")
			w.cache("product:one", "made of kept:1", "kept:1")
			w.cache("product:all", "made of kept:all", "kept:all")
			w.cache("product:brand", "of the brand", "brand:b")
			w.cache("product:other", "made of kept:2", "kept:2")
			w.commit(update("things", "2")) // its own composite, and no more
			w.settle()
			w.wantState("product:other", "absent")
			w.wantState("product:one", "made of kept:1")
			w.commit(update("things", "1"))
			w.settle()
			for _, made := range []string{"product:one", "product:all", "product:brand"} {
				if got, err := w.look(made); err != nil || strings.HasPrefix(got, "made of") || strings.HasPrefix(got, "of the") {
					t.Errorf("%s is %q, %v: want it forgotten", made, got, err)
				}
			}
			for _, key := range []string{"kept:1", "kept:all"} {
				if got, err := w.look(key); err != nil || got == "v" {
					t.Errorf("%s is %q, %v: want it forgotten", key, got, err)
				}
			}
		})
	}
}
