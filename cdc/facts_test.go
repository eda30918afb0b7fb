package cdc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
)

// What PROTOCOL section 2 takes for granted, seen on the server itself: peek is
// the log without any of our code in between.

func peek(t testing.TB, c *pgx.Conn, slot string) [][]byte {
	t.Helper()
	rows, err := c.Query(t.Context(), `SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')`, slot)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kinds(messages [][]byte) string {
	var s string
	for _, m := range messages {
		s += string(m[:1])
	}
	return s
}

func TestFact1CommitIsShippedBeforeItIsVisible(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	exec(t, u.c, `SELECT pg_create_logical_replication_slot('fact1', 'pgoutput')`)
	show := u.commit(t, `INSERT INTO a VALUES (1)`)
	// A later commit is visible at once: visibility is not in the order of LSNs.
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	messages := peek(t, u.c, "fact1")
	if got := kinds(messages); got != "BRICBRIC" {
		t.Fatalf("the log has %q, want both commits", got)
	}
	snap, err := ParseSnapshot(query[string](t, u.c, `SELECT pg_current_snapshot()::text`))
	if err != nil {
		t.Fatal(err)
	}
	first, second := binary.BigEndian.Uint32(messages[0][17:]), binary.BigEndian.Uint32(messages[4][17:])
	if snap.Over(snap.Widen(first)) || !snap.Over(snap.Widen(second)) {
		t.Errorf("snapshot %+v: over(%d) must be false, over(%d) true", snap, first, second)
	}
	if n := query[int](t, u.c, `SELECT count(*) FROM a`); n != 0 {
		t.Errorf("a reader sees %d rows of the invisible commit", n)
	}
	show()
	if snap, err = ParseSnapshot(query[string](t, u.c, `SELECT pg_current_snapshot()::text`)); err != nil || !snap.Over(snap.Widen(first)) {
		t.Errorf("snapshot %+v does not show %d after the wait, %v", snap, first, err)
	}
}

func TestFact2WhatOneSnapshotShowsAllLaterOnesShow(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c, app := connect(t, u), connect(t, u)
	exec(t, c, `CREATE TABLE a (id bigint PRIMARY KEY)`)
	others := make([]*pgx.Conn, 3)
	for i := range others {
		others[i] = connect(t, u)
	}
	for i := range 200 {
		exec(t, app, fmt.Sprintf(`BEGIN; INSERT INTO a VALUES (%d)`, i))
		xid := query[uint64](t, app, `SELECT pg_current_xact_id()::text::bigint`)
		done := make(chan error, 1)
		ctx := t.Context()
		go func() {
			_, err := app.Exec(ctx, `COMMIT`)
			done <- err
		}()
		harness.Eventually(t, 10*time.Second, func() error {
			snap, err := ParseSnapshot(query[string](t, c, `SELECT pg_current_snapshot()::text`))
			if err == nil && !snap.Over(xid) {
				err = errors.New("not over")
			}
			return err
		})
		for _, o := range others {
			if n := query[int](t, o, `SELECT count(*) FROM a WHERE id = $1`, i); n != 1 {
				t.Fatalf("a reader after the snapshot sees %d rows of commit %d", n, i)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestFact5OwnXidIsNotInOwnSnapshot(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c, other := connect(t, u), connect(t, u)
	exec(t, c, `BEGIN`)
	xid := query[uint64](t, c, `SELECT pg_current_xact_id()::text::bigint`)
	// Something newer must be over, or the xid would lie above xmax in any case.
	exec(t, other, `SELECT pg_current_xact_id()`)
	var own, theirs Snapshot
	var err error
	if own, err = ParseSnapshot(query[string](t, c, `SELECT pg_current_snapshot()::text`)); err != nil {
		t.Fatal(err)
	}
	if theirs, err = ParseSnapshot(query[string](t, other, `SELECT pg_current_snapshot()::text`)); err != nil {
		t.Fatal(err)
	}
	if !own.Over(xid) {
		t.Errorf("own snapshot %+v counts %d as running", own, xid)
	}
	if theirs.Over(xid) {
		t.Errorf("the snapshot of somebody else %+v counts %d as over", theirs, xid)
	}
}

func TestServerFact6BeginNamesCommitAndXid(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	slot := slotOf(t)
	exec(t, c, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	exec(t, c, `BEGIN; INSERT INTO a VALUES (1)`)
	xid := query[uint64](t, c, `SELECT pg_current_xact_id()::text::bigint`)
	exec(t, c, `SAVEPOINT s; INSERT INTO a VALUES (2); RELEASE s; COMMIT`)
	m := peek(t, c, slot)
	if got := kinds(m); got != "BRIIC" {
		t.Fatalf("the log has %q", got)
	}
	if got := binary.BigEndian.Uint32(m[0][17:]); got != uint32(xid) {
		t.Errorf("begin names xid %d, want the top-level %d", got, xid)
	}
	begin, commit := binary.BigEndian.Uint64(m[0][1:]), binary.BigEndian.Uint64(m[4][2:])
	if begin != commit || begin == 0 {
		t.Errorf("begin names the commit record at %x, commit at %x", begin, commit)
	}
}

func TestServerFact7CommitRecordsAreLong(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	slot := slotOf(t)
	exec(t, c, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	for i := range 300 {
		exec(t, c, `INSERT INTO a VALUES ($1)`, i)
		insert := lsn(t, query[string](t, c, `SELECT pg_current_wal_insert_lsn()::text`))
		if i%30 != 0 {
			continue
		}
		m := peek(t, c, slot)
		last := m[len(m)-1]
		start, end := change.LSN(binary.BigEndian.Uint64(last[2:])), change.LSN(binary.BigEndian.Uint64(last[10:]))
		if end-start < 40 {
			t.Fatalf("a commit record of %d bytes, at %s", end-start, start)
		}
		// What finished before the insert LSN was read starts at or below bound.
		if bound := change.Bound(insert); start > bound {
			t.Fatalf("commit at %s lies above bound %s of insert LSN %s", start, bound, insert)
		}
	}
}
