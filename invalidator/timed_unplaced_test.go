package invalidator

import (
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// Changes of a log without positions all get one that is read when they are
// handed on: in a database that is idle by then, the same. What Debezium says of
// their order is the order inside of their own transactions, and must not put
// the sixth change of an earlier one behind the first of a later.
func TestAtUnplacedInLogOrder(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	first := saleRow(change.Update, "1", "5", "2050-01-01 00:00:00+00")
	first.Ordinal = 5
	second := saleRow(change.Update, "1", "5", "2040-01-01 00:00:00+00")
	for _, c := range []change.Change{first, second} {
		w.seq++
		b := stream.Batch{Seq: w.seq, Record: &change.Record{InsertLSN: true, Changes: []change.Change{c}}}
		if err := w.log.Append(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	r.drain()
	s.mu.Lock()
	defer s.mu.Unlock()
	var items []ScheduleItem
	for _, b := range s.batches {
		items = append(items, b.Items...)
	}
	if len(items) != 2 || items[1].At.Year() != 2040 {
		t.Fatalf("scheduled %v, want both changes in their order", s.batches)
	}
	earlier, later := items[0], items[1]
	if later.X.Less(earlier.X) || later.X == earlier.X && later.Ordinal < earlier.Ordinal {
		t.Errorf("the later change stands at %s #%d, the earlier one at %s #%d and would win", later.X, later.Ordinal, earlier.X, earlier.Ordinal)
	}
}
