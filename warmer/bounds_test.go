package warmer

import (
	"strconv"
	"strings"
	"testing"
	"time"

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

// Names come from clients and from files: what is no entry is not filled, nor
// what is the version of one.
func TestNamesFromOutside(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	long := "versioned:" + strings.Repeat("1", coherence.MaxNameLen)
	got, err := b.LoadSnapshot(t.Context(), []SnapshotName{{Class: "versioned", Name: "versioned:1"}, {Class: "versioned", Name: "versioned:1@3"}, {Class: "versioned", Name: long}}, nil)
	if err != nil || len(got) != 1 || got[0].Stored != 2 || got[0].Refused["name"] != 2 {
		t.Errorf("loaded: %+v, %v", got, err)
	}
	if n := b.rdb.Exists(t.Context(), b.set.FullName("versioned:1@3@3")).Val(); n != 0 {
		t.Error("versioned:1@3 was filled as an entry that has a version 3")
	}
	var keys []coherence.HotKey
	for _, n := range b.names("versioned:1", "versioned:1@3", long) {
		keys = append(keys, coherence.HotKey{Name: n, PerMinute: 1})
	}
	if got := ranked(b.set.Class("versioned"), keys); len(got) != 1 || got[0] != b.set.FullName("versioned:1") {
		t.Errorf("%d names are hot, want that of the entry alone", len(got))
	}
}

// A statement that is wrong says nothing of how the database is, and the loads of
// other classes are not held up by it.
func TestWrongStatementDoesNotSlowOthers(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	if _, err := b.connect(t).Exec(t.Context(), "ALTER TABLE products RENAME name TO title"); err != nil {
		t.Fatal(err)
	}
	b.Warmer.cfg.Limiter = NewLimiter(LimiterConfig{Concurrency: 4})
	if _, err := b.Fill(t.Context(), "product", b.names("product:1"), Options{}); err == nil {
		t.Fatal("a column that is not there was read")
	}
	if got := b.Warmer.cfg.Limiter.Pace(); got != 4 {
		t.Errorf("the pace is %v after a wrong statement, want 4", got)
	}
}

// The session of a warm-up outlives loads: its server notices by itself that its
// peer is gone, and what it does may last as long as the run.
func TestWarmupSession(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	conn, err := b.loader.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer closeSoon(conn)
	if _, err := openCursor(t.Context(), conn, "SELECT 1 AS id", time.Hour); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3", "statement_timeout": "3600000"} {
		var got string
		// Of a socket that is no TCP the server shows 0, and keeps what was asked for.
		if err := conn.QueryRow(t.Context(), "SELECT CASE WHEN setting = '0' THEN reset_val ELSE setting END FROM pg_settings WHERE name = $1", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %s", name, got, err, want)
		}
	}
}
