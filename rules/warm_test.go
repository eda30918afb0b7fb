package rules_test

import (
	"testing"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

func parseWarm(t *testing.T, fields string) *rules.Warm {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte("version: 1\nentries: {p: {key: 'p:{id}', load: {sql: 'SELECT id WHERE id = ANY(@id)'}}}\nwarm:\n  - {entry: p, sql: SELECT 1 AS id, "+fields+"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	return set.Warm[0]
}

// The instants of a schedule: the same for every process, in the zone named.
func TestWarmNext(t *testing.T) {
	t.Parallel()
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct{ fields, after, want string }{
		{"every: 5m", "2026-11-21T10:02:03Z", "2026-11-21T10:05:00Z"},
		{"every: 5m", "2026-11-21T10:05:00Z", "2026-11-21T10:10:00Z"},
		{"every: 5m", "2026-11-21T11:02:03+01:00", "2026-11-21T10:05:00Z"},
		{"every: 1d", "2026-11-21T10:02:03Z", "2026-11-22T00:00:00Z"},
		{`at: "03:00"`, "2026-11-21T10:02:03Z", "2026-11-22T03:00:00Z"},
		{`at: ["03:00", "15:30"]`, "2026-11-21T10:02:03Z", "2026-11-21T15:30:00Z"},
		{`at: "03:00", tz: Europe/Berlin`, "2026-11-21T10:02:03Z", "2026-11-22T02:00:00Z"},
		{`at: "03:00", tz: Europe/Berlin`, "2026-07-21T10:02:03Z", "2026-07-22T01:00:00Z"},
		{`at: "02:30", tz: Europe/Berlin`, "2026-03-28T10:00:00Z", "2026-03-30T00:30:00Z"}, // the 29th has no 02:30
		{`cron: "30 3 * * 1-5"`, "2026-11-21T10:02:03Z", "2026-11-23T03:30:00Z"},
		{`cron: "*/7 * * * *"`, "2026-11-21T10:57:00Z", "2026-11-21T11:00:00Z"},
		{`cron: "0 0 29 2 *"`, "2026-11-21T10:57:00Z", "2028-02-29T00:00:00Z"},
		{`cron: "30 3 * * *", every: 1h`, "2026-11-21T03:10:00Z", "2026-11-21T03:30:00Z"},
	} {
		got, ok := parseWarm(t, c.fields).Next(at(c.after))
		if !ok || !got.Equal(at(c.want)) {
			t.Errorf("%s after %s: %s, %v, want %s", c.fields, c.after, got.UTC().Format(time.RFC3339), ok, c.want)
		}
	}
	if at, ok := parseWarm(t, "on_start: true").Next(time.Now()); ok {
		t.Errorf("a warm-up without schedule is due at %s", at)
	}
}

func TestWarmStatement(t *testing.T) {
	t.Parallel()
	w := parseWarm(t, "limit: 5")
	for limit, want := range map[int]string{
		0: "SELECT * FROM (\nSELECT 1 AS id\n) AS lethe_warm LIMIT 5",
		3: "SELECT * FROM (\nSELECT 1 AS id\n) AS lethe_warm LIMIT 3",
		9: "SELECT * FROM (\nSELECT 1 AS id\n) AS lethe_warm LIMIT 5",
	} {
		if got := w.Statement(limit); got != want {
			t.Errorf("Statement(%d) = %q, want %q", limit, got, want)
		}
	}
	other := parseWarm(t, "limit: 6")
	if w.ID() != other.ID() {
		t.Errorf("the same statement has the IDs %s and %s", w.ID(), other.ID())
	}
}
