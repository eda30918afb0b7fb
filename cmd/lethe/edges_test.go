package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

const edgeRules = `version: 1
namespace: edges
entries:
  item: {key: "item:{id}"}
  page: {key: "page:{id}"}
rules:
  - {name: r, table: public.items, keys: ["item:{id}"]}
`

// declares is a pipeline with a database and a Redis, and nothing that runs.
func declares(t *testing.T) (p *pipeline, exec func(sql string)) {
	t.Helper()
	return declaresOn(t, harness.NewRedis(t, servers.RedisConfig{}))
}

func declaresOn(t *testing.T, rdb *servers.Redis) (p *pipeline, exec func(sql string)) {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte(edgeRules))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	p, err = newPipeline(&settings{RedisURL: rdb.URL()}, roles{worker: true}, set, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if p.up.database, err = openDatabase(harness.Database(t), log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.up.database.close)
	if p.up.store, err = coherence.Dial(t.Context(), rdb.URL(), coherence.Options{Namespace: "edges", Logger: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.up.store.Close() })
	return p, func(sql string) {
		t.Helper()
		if _, err := p.up.database.pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func (p *pipeline) migrated(t *testing.T) {
	t.Helper()
	err := p.up.database.withConn(t.Context(), func(conn *pgx.Conn) error {
		_, err := migrations.Apply(t.Context(), conn, migrations.Options{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pipeline) learned(t *testing.T, cause string) string {
	t.Helper()
	if err := p.learn(t.Context(), cause); err != nil {
		t.Fatal(err)
	}
	return inForce(p)
}

// inForce are the dependencies that workers would follow.
func inForce(p *pipeline) string {
	var out []string
	for _, d := range p.rules.Load().compiled.Plan.Set().Dependencies {
		out = append(out, fmt.Sprint(d.Of, ">", d.Also[0]))
	}
	return strings.Join(out, " ")
}

// Redis is replaced while a process starts, before there is a worker that redoes
// what it lost: the start goes on with the one that is there. It tried for ever.
func TestStartMeetsAnotherRedis(t *testing.T) {
	t.Parallel()
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	p, _ := declaresOn(t, rdb)
	p.migrated(t)
	lost := p.up.store
	rdb.Kill()
	if err := rdb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience) // of a hang
	defer cancel()
	if err := p.retry(ctx, "test", p.prepareDependencies); err != nil {
		t.Fatalf("the start does not go on: %v", err)
	}
	if p.up.store == lost || len(p.up.store.Lost()) > 0 {
		t.Error("the start goes on with a store that has met a loss nobody redid")
	}
	if _, err := lost.Source(t.Context()); !errors.Is(err, coherence.ErrClosed) {
		t.Errorf("the store before answers %v, want it closed", err)
	}
}

// The table is read for each cause once, a namespace sees its own rows, and what
// can not be understood is told.
func TestLearn(t *testing.T) {
	t.Parallel()
	p, exec := declares(t)
	if got := p.learned(t, "no table"); got != "" {
		t.Fatalf("in force without a table: %s", got)
	}
	p.migrated(t)
	exec(`INSERT INTO lethe.dependencies (namespace, of, also) VALUES ('edges', 'item:{id}', ARRAY['page:{id}']), ('other', 'item:{id}', '{page:1}')`)
	if got, want := p.learned(t, "one"), "item:{id}>page:{id}"; got != want {
		t.Fatalf("in force %q, want %q", got, want)
	}
	exec(`INSERT INTO lethe.dependencies (namespace, of, also, condition) VALUES ('edges', 'item:2', '{page:2}', 'nonsense'), ('edges', 'item:{', '{a}', NULL)`)
	if got, want := p.learned(t, "one"), "item:{id}>page:{id}"; got != want {
		t.Fatalf("in force %q after a cause that was answered, want %q", got, want)
	}
	if p.edges.details() != nil {
		t.Fatalf("readyz tells of %v", p.edges.details())
	}
	if got, want := p.learned(t, "two"), "item:{id}>page:{id} item:2>page:2"; got != want {
		t.Fatalf("in force %q, want %q", got, want)
	}
	if got := p.edges.details()["problems"]; got != 2 {
		t.Errorf("readyz tells of %v problems, want 2", got)
	}
	for state, want := range map[string]float64{"in_force": 1, "faulty": 1, "skipped": 1} {
		if got := testutil.ToFloat64(p.edges.count.WithLabelValues(state)); got != want {
			t.Errorf("%s: %v, want %v", state, got, want)
		}
	}
	exec(`DELETE FROM lethe.dependencies`)
	before := p.rules.Load()
	if got := p.learned(t, ""); got != "" {
		t.Errorf("in force after all were deleted: %q", got)
	}
	if p.rules.Load() == before {
		t.Error("the rules are those of before")
	}
	before = p.rules.Load()
	p.learned(t, "")
	if p.rules.Load() != before {
		t.Error("nothing has changed, and workers are given other rules")
	}
}

// A reload of the files that began before the table was read does not bring back
// what the table held then.
func TestReloadKeepsWhatWasLearned(t *testing.T) {
	t.Parallel()
	p, exec := declares(t)
	p.migrated(t)
	files, err := rules.Parse("rules.yaml", []byte(edgeRules+"dependencies:\n  - {of: \"page:{id}\", also: [\"item:1\"]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	next, err := p.withEdges(files) // as it begins
	if err != nil {
		t.Fatal(err)
	}
	exec(`INSERT INTO lethe.dependencies (namespace, of, also) VALUES ('edges', 'item:{id}', ARRAY['page:{id}'])`)
	p.learned(t, "meanwhile")
	p.inForce(next)
	if got, want := inForce(p), "page:{id}>item:1 item:{id}>page:{id}"; got != want {
		t.Errorf("in force %q, want %q", got, want)
	}
	if got := p.learned(t, ""); got != "page:{id}>item:1 item:{id}>page:{id}" {
		t.Errorf("in force %q after another look: the files' are lost", got)
	}
}

// What may lack a commit that the log has told of is not read: a standby, and a
// primary of before.
func TestDependenciesAreThePrimarys(t *testing.T) {
	t.Parallel()
	p, _ := declares(t)
	if err := p.isPrimary(t.Context(), source.Instance{SystemID: 7, Timeline: 2, InRecovery: true}); err == nil {
		t.Error("a standby was taken")
	}
	if err := p.isPrimary(t.Context(), source.Instance{SystemID: 7, Timeline: 2}); err != nil {
		t.Errorf("a primary was refused before anything is recorded: %v", err)
	}
	if _, err := p.up.store.SetSource(t.Context(), change.Source{Era: 3, SystemID: 7, Timeline: 2}); err != nil {
		t.Fatal(err)
	}
	if err := p.isPrimary(t.Context(), source.Instance{SystemID: 7, Timeline: 1}); err == nil {
		t.Error("an old primary was taken")
	}
	for _, timeline := range []uint32{2, 3} {
		if err := p.isPrimary(t.Context(), source.Instance{SystemID: 7, Timeline: timeline}); err != nil {
			t.Errorf("timeline %d was refused: %v", timeline, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.learn(ctx, "away"); err == nil {
		t.Error("a reading that failed is none")
	}
	if len(p.edges.told) != 0 {
		t.Error("a cause whose reading failed counts as answered")
	}
}

// A table that may not be read is not an empty one: a worker without the right
// does not start, and says what it needs.
func TestDependenciesThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	p, exec := declares(t)
	p.migrated(t)
	role := "edges_" + strings.ReplaceAll(strings.ToLower(rand.Text()), "-", "")
	exec(`CREATE ROLE ` + role)
	t.Cleanup(func() { _, _ = p.up.database.pool.Exec(context.Background(), `DROP ROLE `+role) })
	err := p.up.database.withConn(t.Context(), func(conn *pgx.Conn) error {
		if _, err := conn.Exec(t.Context(), `SET ROLE `+role); err != nil {
			return err
		}
		_, err := readEdges(t.Context(), conn, "edges")
		if _, reset := conn.Exec(t.Context(), `RESET ROLE`); reset != nil {
			return reset
		}
		return err
	})
	if err == nil || !permanent(err) || !strings.Contains(fmt.Sprint(err), "may not read") {
		t.Errorf("got %v, want an error that no retry cures", err)
	}
}

// Rows that could not be rows of rules are refused where they are written.
func TestServerDependenciesTableRefuses(t *testing.T) {
	t.Parallel()
	p, _ := declares(t)
	p.migrated(t)
	for _, values := range []string{
		`'lethe:x', 'a', '{b}', NULL`, `'n', '', '{b}', NULL`, `'n', 'a', '{}', NULL`, `'n', 'a', '{b,NULL}', NULL`, `'n', 'a', '{b,""}', NULL`,
		`'n', 'a', '{{b},{c}}', NULL`, `'n', 'a', '{b}', ''`, `'n', repeat('a', 1025), '{b}', NULL`, `'n', E'a\n', '{b}', NULL`, `'n', 'a', ARRAY[E'b\t'], NULL`,
		`'n', 'a', array_fill('b'::text, ARRAY[101]), NULL`, `NULL, 'a', '{b}', NULL`,
	} {
		if _, err := p.up.database.pool.Exec(t.Context(), `INSERT INTO lethe.dependencies (namespace, of, also, condition) VALUES (`+values+`)`); err == nil {
			t.Errorf("%s was taken", values)
		}
	}
	if _, err := p.up.database.pool.Exec(t.Context(), `INSERT INTO lethe.dependencies (namespace, of, also, condition) VALUES ('', 'a', '{b}', 'true')`); err != nil {
		t.Errorf("no namespace: %v", err)
	}
}
