package cdc

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
)

// A look into a slot shows what is there, by range, and takes nothing.
func TestServerPeekConsumesNothing(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	w.set(func() { w.auto = false }) // nothing becomes durable: all of it stays in the slot
	r := start(t, u, w)
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	exec(t, c, `INSERT INTO a VALUES (2), (3)`)
	exec(t, c, `SELECT pg_logical_emit_message(true, 'lethe', '{"keys":["x"]}'), pg_logical_emit_message(true, 'other', 'y')`)
	w.waitEvent(t, "insert public.a id='3'")
	slots := func() (n int) {
		t.Helper()
		if err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	look := func(slot string, rg PeekRange) (ids string, list []*change.Change, more bool) {
		t.Helper()
		list, more, err := Peek(t.Context(), c, slot, []string{"p"}, rg)
		if err != nil {
			t.Fatal(err)
		}
		var parts []string
		for _, ch := range list {
			if ch.Op == change.Message {
				parts = append(parts, ch.Prefix)
			} else {
				parts = append(parts, string(ch.New[0].Bytes))
			}
		}
		return strings.Join(parts, " "), list, more
	}
	slot := slotOf(t)
	for range 2 {
		got, list, more := look(slot, PeekRange{})
		if got != "1 2 3 lethe" && got != "1 2 3 lethe other" || more {
			t.Fatalf("got %q, more %v", got, more)
		}
		second := list[1].Commit.LSN
		if got, _, _ := look(slot, PeekRange{From: second, To: second + 1}); got != "2 3" {
			t.Errorf("the second commit: got %q", got)
		}
		if got, _, _ := look(slot, PeekRange{To: second}); got != "1" {
			t.Errorf("before the second commit: got %q", got)
		}
		// The reader's own messages count too, and may stand before the first row.
		limit, got, more := 1, "", true
		for ; got == "" && more && limit < 100; limit++ {
			got, _, more = look(slot, PeekRange{Limit: limit})
		}
		if got != "1" || !more {
			t.Errorf("with a limit of %d: got %q, more %v", limit-1, got, more)
		}
	}
	if got := slots(); got != 1 {
		t.Errorf("%d slots, want the one of the reader", got)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := look(slot, PeekRange{}); !strings.HasPrefix(got, "1 2 3") {
		t.Errorf("of a slot that nobody reads: got %q", got)
	}
	if _, _, err := Peek(t.Context(), c, "no_such_slot", []string{"p"}, PeekRange{}); err == nil || !strings.Contains(err.Error(), "no_such_slot") {
		t.Errorf("got %v, want an error that names the slot", err)
	}
}
