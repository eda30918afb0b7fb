package schedule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/invalidator"
)

// Only the place in the log decides, whatever comes first, and what was taken
// back is not brought back by a change from before.
func TestServerOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	later := w.now().Add(time.Hour)
	for _, step := range []struct {
		what string
		item invalidator.ScheduleItem
		want string
	}{
		{"first", item("1", 0x20, later, "two"), "20 two"},
		{"an older one", item("1", 0x10, later, "one"), "20 two"},
		{"the same again", item("1", 0x20, later, "two"), "20 two"},
		{"a newer one", item("1", 0x30, later, "three"), "30 three"},
		{"NULL", item("1", 0x40, time.Time{}, ""), "40 -"},
		{"older than NULL", item("1", 0x30, later, "three"), "40 -"},
		{"the row comes back", item("1", 0x50, later, "five"), "50 five"},
	} {
		w.put(s, step.item)
		if got := w.state("a", "1"); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
	// The deletion comes before the insert.
	w.put(s, item("2", 0x20, time.Time{}, ""))
	w.put(s, item("2", 0x10, later, "one"))
	if got := w.state("a", "2"); got != "20 -" {
		t.Errorf("insert after its delete: %s, want 20 -", got)
	}
	// Of one batch the last counts, and inside a transaction the ordinal.
	a, b := item("3", 0x20, later, "first"), item("3", 0x20, later, "second")
	b.Ordinal = 1
	w.put(s, b, a, item("3", 0x10, later, "older"))
	if got := w.state("a", "3"); got != "20 second" {
		t.Errorf("two changes in a transaction: %s, want the second", got)
	}
	// A later era, whatever its LSNs are.
	era := item("3", 0x1, later, "era")
	era.X.Era = 2
	w.put(s, era)
	if got := w.state("a", "3"); got != "1 era" {
		t.Errorf("another era: %s", got)
	}
}

func TestServerTruncate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	later := w.now().Add(time.Hour)
	_, err := s.Put(t.Context(), invalidator.ScheduleBatch{
		Items: []invalidator.ScheduleItem{item("before", 0x10, later, "x"), item("after", 0x30, later, "y")},
		Gone:  []invalidator.ScheduleItem{item("", 0x20, time.Time{}, "")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if before, after := w.state("a", "before"), w.state("a", "after"); before != "20 -" || after != "30 y" {
		t.Errorf("before %s, after %s; want 20 - and 30 y", before, after)
	}
}

// What was past at the commit is the caller's, and is not fired besides; of what
// is to come the caller hears nothing.
func TestServerDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	now := w.now()
	past, gone := item("past", 0x10, now.Add(-time.Hour), "p"), item("gone", 0x10, time.Time{}, "")
	past.Committed, gone.Committed = now.Add(-time.Minute), now.Add(-time.Minute)
	got := w.put(s, past, item("future", 0x10, now.Add(time.Hour), "f"), gone)
	if got != "[true false false]" {
		t.Errorf("due %s, want the past one", got)
	}
	if n, err := s.Fire(t.Context()); n != 0 || err != nil {
		t.Errorf("fired %d (%v), want none", n, err)
	}
	if got := w.state("a", "past"); got != "10 -" {
		t.Errorf("past: %s, want 10 -", got)
	}
}

// What became past on the way to the worker is fired: an entry that was read in
// between is stamped above the change, and only a message stands above it. The
// same of a change of which nobody knows when it was committed, and of one from
// a database whose clock was set back since.
func TestServerDueSinceTheCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	now := w.now()
	late, unknown, ahead := item("late", 0x10, now.Add(-time.Minute), "late"), item("unknown", 0x10, now.Add(-time.Minute), "unknown"), item("ahead", 0x10, now.Add(time.Hour), "ahead")
	late.Committed, ahead.Committed = now.Add(-time.Hour), now.Add(2*time.Hour)
	if got := w.put(s, late, unknown, ahead); got != "[false false false]" {
		t.Errorf("due %s, want none", got)
	}
	if n, err := s.Fire(t.Context()); n != 2 || err != nil {
		t.Errorf("fired %d (%v), want two", n, err)
	}
	got := w.messages()
	slices.Sort(got)
	if !slices.Equal(got, []string{"late", "unknown"}) {
		t.Errorf("messages %q, want those of what is past", got)
	}
}

// Two workers of a deployment and one of another at a time: each schedule is
// emitted once, by its own, and none before its time.
func TestServerFiredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, other := w.store("a"), w.store("a"), w.store("other")
	for _, s := range []*Store{a, b} {
		w.run(s)
	}
	const each = 400
	due := w.now().Add(3 * time.Second)
	var items []invalidator.ScheduleItem
	var want []string
	for i := range each {
		at := due
		if i%2 == 1 {
			at = due.Add(100 * time.Millisecond)
		}
		items = append(items, item(fmt.Sprint(i), 0x10, at, fmt.Sprintf("message %03d", i)))
		want = append(want, fmt.Sprintf("message %03d", i))
	}
	w.put(a, items...)
	w.put(other, item("0", 0x10, due, "of another deployment"))
	if early := w.messages(); len(early) > 0 && w.now().Before(due) {
		t.Errorf("%d messages before their time", len(early))
	}
	var got []string
	harness.Eventually(t, patience, func() error {
		got = append(got, w.messages()...)
		if len(got) < each {
			return fmt.Errorf("%d of %d messages", len(got), each)
		}
		return nil
	})
	// Whoever fired one twice does so in the next two rounds.
	harness.Eventually(t, patience, func() error { // the log shows a commit before a snapshot does
		var left int
		w.one(&left, `SELECT count(*) FROM lethe.schedules WHERE owner = 'a' AND due_at IS NOT NULL`)
		if left > 0 {
			return fmt.Errorf("%d left", left)
		}
		return nil
	})
	if _, err := a.Fire(t.Context()); err != nil {
		t.Error(err)
	}
	got = append(got, w.messages()...)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d messages, want each of %d once: %.300v", len(got), each, got)
	}
	if got := w.state("other", "0"); got != "10 of another deployment" {
		t.Errorf("the other deployment's: %s", got)
	}
	if _, err := other.Fire(t.Context()); err != nil {
		t.Error(err)
	}
	if got := w.messages(); !slices.Equal(got, []string{"of another deployment"}) {
		t.Errorf("%q", got)
	}
}

// What a deployment has left that is gone, and messages, are fired by whoever
// is there of the namespace; a schedule of one deployment does not replace that
// of another, whose positions are others.
func TestServerNamespace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before, now := w.store("a before"), w.store("a now")
	at := w.now().Add(2 * time.Second)
	message := item("m", 0x10, at, "a message")
	message.Rule = invalidator.ScheduleRule{}
	w.put(before, item("1", 0x90, at, "of before"), message)
	w.put(now, item("1", 0x10, at, "of now"), message)
	w.run(now)
	var got []string
	harness.Eventually(t, patience, func() error {
		if got = append(got, w.messages()...); len(got) < 3 {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	slices.Sort(got)
	if !slices.Equal(got, []string{"a message", "of before", "of now"}) {
		t.Errorf("fired %q", got)
	}
}

// What is stored while a worker sleeps until later wakes it, in its own process
// by a word and in others by their next look.
func TestServerWoken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	running, elsewhere := w.store("a"), w.store("a")
	running.cfg.Poll = time.Minute // only a word can wake it
	w.put(running, item("early", 0x10, w.now().Add(time.Hour), "early"))
	w.due()
	w.run(running)
	wantMessage(t, w, "early") // it sleeps now
	w.put(running, item("far", 0x10, w.now().Add(time.Hour), "far"))
	w.put(running, item("near", 0x10, w.now().Add(2*time.Second), "near"))
	wantMessage(t, w, "near")
	second := w.store("a")
	w.run(second)
	w.put(elsewhere, item("near", 0x20, w.now().Add(2*time.Second), "again"))
	wantMessage(t, w, "again")
}

func wantMessage(t *testing.T, w *world, want string) {
	t.Helper()
	harness.Eventually(t, patience, func() error {
		if got := w.messages(); !slices.Equal(got, []string{want}) {
			return fmt.Errorf("messages %q, want %q", got, want)
		}
		return nil
	})
}

// Nobody ran when the time came.
func TestServerOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	w.put(s, item("1", 0x10, w.now().Add(time.Hour), "overdue"))
	w.due()
	if got := w.messages(); len(got) > 0 {
		t.Fatalf("messages %q without a worker", got)
	}
	w.run(w.store("a"))
	wantMessage(t, w, "overdue")
}

// A worker dies between the message and the commit: neither has happened, and
// the next one fires it, once.
func TestServerCrashBeforeCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	w.put(s, item("1", 0x10, w.now().Add(time.Hour), "once"))
	w.due()
	conn, err := pgx.ConnectConfig(t.Context(), w.pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	harness.Eventually(t, patience, func() error {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			return err
		}
		tag, err := tx.Exec(t.Context(), fire, "a", 10)
		if err == nil && tag.RowsAffected() == 1 {
			return nil
		}
		return errors.Join(errors.New("not due"), err, tx.Rollback(t.Context()))
	})
	// While it is in that transaction, nobody else touches it.
	if n, err := s.Fire(t.Context()); n != 0 || err != nil {
		t.Errorf("fired %d (%v) of what another worker has in hand", n, err)
	}
	if err := conn.PgConn().Conn().Close(); err != nil { // as a process that is killed
		t.Fatal(err)
	}
	harness.Eventually(t, patience, func() error {
		if _, err := s.Fire(t.Context()); err != nil {
			return err
		}
		if got := w.state("a", "1"); got != "10 -" {
			return errors.New(got)
		}
		return nil
	})
	if got := w.messages(); !slices.Equal(got, []string{"once"}) {
		t.Errorf("messages %q, want it once", got)
	}
}

// A row that changes moves its schedule: what was due before does not fire, and
// a row that is gone fires nothing.
func TestServerRescheduled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	soon, later := w.now().Add(2*time.Second), w.now().Add(time.Hour)
	w.put(s, item("later", 0x10, soon, "too early"), item("gone", 0x10, soon, "of a row that is gone"), item("sooner", 0x10, later, "too late"), item("stays", 0x10, soon, "stays"))
	w.put(s, item("later", 0x20, later, "later"), item("gone", 0x20, time.Time{}, ""), item("sooner", 0x20, soon, "sooner"))
	w.run(s)
	var got []string
	harness.Eventually(t, patience, func() error {
		if got = append(got, w.messages()...); len(got) < 2 {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
	slices.Sort(got)
	if !slices.Equal(got, []string{"sooner", "stays"}) {
		t.Errorf("fired %q", got)
	}
	if got := w.state("a", "later"); got != "20 later" {
		t.Errorf("the one that was put off: %s", got)
	}
}

// What is below the watermark can not come again; what is above it can, and
// what is young may be in the hands of a worker that was cut off.
func TestServerPrune(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	later := w.now().Add(time.Hour)
	w.put(s, item("below", 0x10, time.Time{}, ""), item("above", 0x30, time.Time{}, ""), item("pending", 0x10, later, "x"), item("ancient", 0x30, time.Time{}, ""))
	w.exec(`UPDATE lethe.schedules SET updated_at = now() - interval '11 minutes'`)
	w.exec(`UPDATE lethe.schedules SET updated_at = now() - interval '8 days' WHERE row_key = 'ancient'`)
	w.put(s, item("young", 0x10, time.Time{}, ""))
	if n, err := s.Prune(t.Context(), change.Position{Era: 1, LSN: 0x20}); n != 2 || err != nil {
		t.Errorf("pruned %d (%v), want 2", n, err)
	}
	for key, want := range map[string]string{"below": "none", "above": "30 -", "pending": "10 x", "ancient": "none", "young": "10 -"} {
		if got := w.state("a", key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

func TestServerUsable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`DO $$ BEGIN EXECUTE format('CREATE ROLE %I LOGIN', 'plain_' || current_database()); END $$`)
	config := w.pool.Config().ConnConfig.Copy()
	config.User = "plain_" + config.Database
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var missing *MissingError
	if err := Usable(t.Context(), conn); !errors.As(err, &missing) || !strings.Contains(missing.Hint(), "lethe migrate --role") {
		t.Errorf("without rights: %v", err)
	}
	w.exec(`DO $$ BEGIN EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.source, lethe.schedules, lethe.schedule_scans TO %I', 'plain_' || current_database()); END $$`)
	if err := Usable(t.Context(), conn); err != nil {
		t.Errorf("with rights: %v", err)
	}
	w.exec(`DROP TABLE lethe.schedules`)
	if err := Usable(t.Context(), conn); !errors.As(err, &missing) {
		t.Errorf("without the table: %v", err)
	}
}
