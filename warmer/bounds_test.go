package warmer

import (
	"strconv"
	"testing"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/invalidator"
)

// While nothing is loaded, because the database does not answer, what waits is
// bounded, and so is what remembers in which order it does.
func TestQueueLinesAreBounded(t *testing.T) {
	t.Parallel()
	set := parse(t, fillRules)
	q, err := NewQueue(QueueConfig{Warmer: &Warmer{cfg: Config{Metrics: NewMetrics(nil)}}, Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	class := set.Class("product")
	for i := range 10_000 {
		c := class
		if i/100%2 == 1 { // each class loses all of its line to the other, again and again
			c = set.Class("raw")
		}
		q.Rewarm([]invalidator.Rewarm{{Class: c, Name: c.Name + ":" + strconv.Itoa(i), Outcome: coherence.OutcomeDeleted}})
	}
	if n := len(q.mu.items); n != 10 {
		t.Errorf("%d entries wait, the limit is 10", n)
	}
	if n := len(q.mu.ready["product"]) + len(q.mu.ready["raw"]); n > 40 {
		t.Errorf("%d stand in line for 10 that wait", n)
	}
	if n := len(q.mu.classes); n > 2 {
		t.Errorf("two classes take turns, and %d stand in line", n)
	}
}
