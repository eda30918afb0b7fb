package source_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/migrations"
)

func checkSlot(t *testing.T, tr *source.Tracker, conn *pgx.Conn) (source.Slot, []source.Due) {
	t.Helper()
	s, due, err := tr.CheckSlot(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return s, due
}

func TestServerSlotIsComparedWithTheStoredPosition(t *testing.T) {
	t.Parallel()
	address := harness.Database(t)
	conn := connect(t, address)
	migrate(t, conn, migrations.Options{})
	var name string
	if err := conn.QueryRow(t.Context(), `SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	tr := source.New(name, nil)
	open(t, tr, conn, source.Hints{})
	raised(t, tr, conn)

	s, due := checkSlot(t, tr, conn)
	if s.Exists {
		t.Error("there is a slot already")
	}
	wantRaise(t, due, change.ReasonSlotLost)

	run(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name)
	s, due = checkSlot(t, tr, conn)
	if !s.Exists || s.Plugin != "pgoutput" || s.Database != name || s.Confirmed == 0 || len(due) > 0 {
		t.Errorf("slot is %+v with %d due, want ours and nothing", s, len(due))
	}
	store := func(l change.LSN) {
		t.Helper()
		if err := tr.StoreConfirmed(t.Context(), conn, l); err != nil {
			t.Fatal(err)
		}
	}
	store(s.Confirmed)
	store(s.Confirmed - 8) // never back
	// Stored first and sent to the slot then: whatever dies in between.
	run(t, conn, `SELECT pg_logical_emit_message(true, 'x', 'x')`)
	in, err := source.Read(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	store(in.Insert + 8)
	// To that position and not to the log's end, which the tests beside this one
	// move by any amount.
	run(t, conn, `SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)`, name, in.Insert.String())
	tr = source.New(name, nil)
	if _, due := open(t, tr, connect(t, address), source.Hints{}); len(due) > 0 {
		t.Fatalf("%+v is due on the same instance", due)
	}
	before := s.Confirmed
	if s, due := checkSlot(t, tr, conn); s.Confirmed <= before || s.Advanced || len(due) > 0 {
		t.Errorf("slot is %+v with %d due, want it beyond %s and nothing due: it lies below the stored position", s, len(due), before)
	}

	// Somebody else advances it, or drops and makes it anew.
	run(t, conn, `UPDATE lethe.source SET confirmed = $1::text::pg_lsn`, s.Confirmed.String())
	tr = source.New(name, nil)
	open(t, tr, conn, source.Hints{})
	s, due = checkSlot(t, tr, conn)
	if !s.Advanced {
		t.Errorf("slot is %+v, want advanced", s)
	}
	wantRaise(t, due, change.ReasonSlotLost)
	if again := tr.SlotLost(); again.Cause == due[0].Cause {
		t.Error("two losses have one cause: the second would not be applied")
	}
	store(s.Confirmed)
	if s, due := checkSlot(t, tr, conn); s.Advanced || len(due) > 0 {
		t.Errorf("slot is %+v with %d due, want nothing once the position is stored", s, len(due))
	}
}

func TestStoreConfirmedStopsBehindAnotherReader(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	migrate(t, conn, migrations.Options{})
	tr := source.New("s", nil)
	open(t, tr, conn, source.Hints{})
	run(t, conn, `UPDATE lethe.source SET era = era + 1`)
	if err := tr.StoreConfirmed(t.Context(), conn, 100); err == nil {
		t.Error("a position of an old era was stored")
	}
	if err := tr.Raised(t.Context(), conn); err == nil {
		t.Error("the raise of a later era was taken for done")
	}
}

// Between the raise of a new era and the first stored position there must be no
// time in which a slot that is made anew goes unnoticed.
func TestServerRaisedRemembersTheSlot(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	migrate(t, conn, migrations.Options{})
	slot := conn.Config().Database
	run(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	t.Cleanup(func() { _, _ = conn.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, slot) })
	tr := source.New(slot, nil)
	_, due := open(t, tr, conn, source.Hints{})
	wantRaise(t, due, change.ReasonSource)
	if _, due, err := tr.CheckSlot(t.Context(), conn); err != nil || len(due) > 0 {
		t.Fatalf("due is %+v (%v), want nothing", due, err)
	}
	raised(t, tr, conn)
	// It dies before a position is stored, and so does the next one, which has
	// made the slot anew, before its raise is durable.
	run(t, conn, `SELECT pg_drop_replication_slot($1)`, slot)
	run(t, conn, `CREATE TABLE a (id int)`)
	run(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	tr = source.New(slot, nil)
	if _, due := open(t, tr, conn, source.Hints{}); len(due) > 0 {
		t.Fatalf("due is %+v, want nothing: it is the same era", due)
	}
	_, due, err := tr.CheckSlot(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	wantRaise(t, due, change.ReasonSlotLost)
}
