package servers_test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// query returns the one value of a query as text.
func query(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), sql).Scan(&got); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func TestServerPostgresRestartsOnItsPortAndData(t *testing.T) {
	t.Parallel()
	p := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"application_name": "it's"}})
	if err := p.Exec(t.Context(), "postgres", "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	if got := query(t, p.URL("postgres"), "SHOW wal_level"); got != "logical" {
		t.Errorf("wal_level = %s, want logical", got)
	}
	if got := query(t, p.URL("postgres"), "SELECT setting FROM pg_settings WHERE name = 'application_name'"); got != "it's" {
		t.Errorf("application_name = %s, want it's", got)
	}
	stops := map[string]func() error{
		"fast":      func() error { return p.Stop(servers.Fast) },
		"immediate": func() error { return p.Stop(servers.Immediate) },
		"kill":      func() error { p.Kill(); return nil },
	}
	for name, stop := range stops {
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.Port()))); err == nil {
			conn.Close()
			t.Fatalf("%s: the server still listens", name)
		}
		if err := p.Start(t.Context()); err != nil {
			t.Fatalf("%s: start again: %v", name, err)
		}
		if got := query(t, p.URL("postgres"), "SELECT n FROM kept"); got != "7" {
			t.Errorf("%s: row after the restart = %s, want 7", name, got)
		}
	}
	dir := p.DataDir()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("data directory after Close: %v, want it gone", err)
	}
}

func TestServerPostgresStandbyFollowsAndIsPromoted(t *testing.T) {
	t.Parallel()
	p := harness.NewPostgres(t, servers.PostgresConfig{})
	if err := p.Exec(t.Context(), "postgres", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	s := harness.NewStandby(t, p, servers.StandbyConfig{})
	if got := query(t, s.URL("postgres"), "SELECT pg_is_in_recovery()::text"); got != "true" {
		t.Errorf("pg_is_in_recovery() = %s, want true", got)
	}
	// With remote_apply the insert returns when the standby shows it.
	err := p.Exec(t.Context(), "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, func() error {
		if got := query(t, p.URL("postgres"), "SELECT sync_state FROM pg_stat_replication"); got != "sync" {
			return fmt.Errorf("sync_state = %s", got)
		}
		return nil
	})
	if err := p.Exec(t.Context(), "postgres", "SET synchronous_commit = remote_apply", "INSERT INTO a VALUES (2)"); err != nil {
		t.Fatal(err)
	}
	if got := query(t, s.URL("postgres"), "SELECT sum(n)::text FROM a"); got != "3" {
		t.Errorf("sum on the standby = %s, want 3", got)
	}
	p.Kill()
	if err := s.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec(t.Context(), "postgres", "SET synchronous_commit = local", "INSERT INTO a VALUES (4)"); err != nil {
		t.Fatal(err)
	}
	if got := query(t, s.URL("postgres"), "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"); got != "00000002" {
		t.Errorf("timeline after the promotion = %s, want 00000002", got)
	}
}
