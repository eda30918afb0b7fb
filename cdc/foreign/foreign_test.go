package foreign

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/stream"
)

func TestMain(m *testing.M) { harness.Main(m) }

// one is a partition that delivers what it is given.
type one struct{ deliveries []stream.Delivery }

func (o *one) ID() int    { return 0 }
func (o *one) Count() int { return 1 }
func (o *one) Fetch(context.Context, int) ([]stream.Delivery, error) {
	return o.deliveries, nil
}
func (o *one) Ack(context.Context, int64) error { return nil }

func foreignRecord(xid uint64) *change.Record {
	table := &change.Table{Schema: "public", Name: "items", Columns: []change.Column{{Name: "id"}}}
	return &change.Record{InsertLSN: true, Changes: []change.Change{{
		Op: change.Insert, Commit: &change.Commit{XID: xid}, Table: table,
		New: change.Row{{Kind: change.Text, Bytes: []byte("1")}},
	}}}
}

func open(t *testing.T, url string) (*pgxpool.Pool, *Gate) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := migrations.Apply(t.Context(), conn.Conn(), migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	return pool, New(nil, Config{Conn: pool, Tracker: source.New("foreign", nil)})
}

func TestCompletesForeignRecords(t *testing.T) {
	t.Parallel()
	pool, gate := open(t, harness.Database(t))
	var xid uint64
	if err := pool.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	own := &change.Record{V: 7, Source: change.Source{Era: 3}}
	p := &partition{Partition: &one{[]stream.Delivery{{Record: own, Offset: 4}, {Record: foreignRecord(xid), Offset: 5}}}, gate: gate}
	got, err := p.Fetch(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if own.V != 7 || own.Source.Era != 3 || len(own.Raises) != 0 {
		t.Errorf("a record of Lethe's own reader was changed: %+v", own)
	}
	r := got[1].Record
	if r.InsertLSN || r.Source.Era != 1 || r.Source.SystemID == 0 || r.V != 0 || r.Changes[0].Commit.LSN == 0 {
		t.Errorf("the foreign record is not complete: %+v, commit %+v", r, r.Changes[0].Commit)
	}
	if len(r.Raises) != 1 || r.Raises[0].Reason != change.ReasonSource {
		t.Errorf("raises %+v, want that of the first era", r.Raises)
	}
	// Applied, so the raise is not due again: neither here nor in a new process.
	if err := p.Ack(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	again := New(nil, Config{Conn: pool, Tracker: source.New("foreign", nil)})
	for _, g := range []*Gate{gate, again} {
		p := &partition{Partition: &one{[]stream.Delivery{{Record: foreignRecord(xid), Offset: 6}}}, gate: g}
		got, err := p.Fetch(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		if r := got[0].Record; len(r.Raises) != 0 || r.Source.Era != 1 {
			t.Errorf("after the raise was applied: %+v, want nothing due", r)
		}
	}
}

// The sixth change of an earlier transaction does not stand behind the first of
// a later one, although both get one position: of two schedules of a row that
// which is later there would win.
func TestKeepsOrderOfForeignTransactions(t *testing.T) {
	t.Parallel()
	_, gate := open(t, harness.Database(t))
	earlier, later := foreignRecord(0), foreignRecord(0)
	earlier.Changes[0].Ordinal = 5
	p := &partition{Partition: &one{[]stream.Delivery{{Record: earlier, Offset: 1}, {Record: later, Offset: 2}}}, gate: gate}
	got, err := p.Fetch(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	a, b := got[0].Record.Changes[0], got[1].Record.Changes[0]
	if b.Commit.LSN < a.Commit.LSN || b.Commit.LSN == a.Commit.LSN && b.Ordinal < a.Ordinal {
		t.Errorf("the later change stands at %s #%d, the earlier one at %s #%d", b.Commit.LSN, b.Ordinal, a.Commit.LSN, a.Ordinal)
	}
}

func TestRaiseStaysDueUntilApplied(t *testing.T) {
	t.Parallel()
	pool, gate := open(t, harness.Database(t))
	for _, g := range []*Gate{gate, New(nil, Config{Conn: pool, Tracker: source.New("foreign", nil)})} {
		p := &partition{Partition: &one{[]stream.Delivery{{Record: foreignRecord(0), Offset: 1}}}, gate: g}
		got, err := p.Fetch(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(got[0].Record.Raises) != 1 {
			t.Errorf("raises %+v, want the one that nobody has acknowledged", got[0].Record.Raises)
		}
		if err := p.Ack(t.Context(), 0); err != nil { // an earlier record only
			t.Fatal(err)
		}
	}
}

// A foreign record whose commit is flushed and invisible waits, as one of
// Lethe's own reader does.
func TestHoldsInvisibleForeignCommit(t *testing.T) {
	t.Parallel()
	pg := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"synchronous_standby_names": "nobody"}})
	url := pg.URL("postgres")
	if err := pg.Exec(t.Context(), "postgres", `SET synchronous_commit = local; CREATE TABLE items (id int)`); err != nil {
		t.Fatal(err)
	}
	pool, gate := open(t, url+"&options=-csynchronous_commit%3Dlocal")
	writer, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close(context.WithoutCancel(t.Context()))
	tx, err := writer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xid uint64
	if err := tx.QueryRow(t.Context(), `INSERT INTO items VALUES (1) RETURNING pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() { committed <- tx.Commit(context.WithoutCancel(t.Context())) }()
	harness.Eventually(t, 20*time.Second, harness.True("the commit waits for its standby", func() bool {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&n)
		return err == nil && n == 1
	}))

	p := &partition{Partition: &one{[]stream.Delivery{{Record: foreignRecord(xid), Offset: 1}}}, gate: gate}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.Fetch(ctx, 10); err == nil {
		t.Error("a record went on although its commit is invisible")
	}
	if err := pg.Exec(t.Context(), "postgres", `ALTER SYSTEM SET synchronous_standby_names = ''`, `SELECT pg_reload_conf()`); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Fetch(t.Context(), 10); err != nil {
		t.Errorf("after the commit became visible: %v", err)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
}
