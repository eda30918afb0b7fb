package harness

import (
	"fmt"
	"os"
	"testing"

	"github.com/lethe-cache/lethe/internal/servers"
)

// version is the Postgres that tests run on where they name none:
// LETHE_TEST_POSTGRES is debian, 14, 15, 16, 17 or 18.
func version() string { return os.Getenv("LETHE_TEST_POSTGRES") }

// Postgres is the server that the tests of this process share. Tests change
// nothing of it that another test could see: no settings, no restart; Database
// gives them a database of their own, NewPostgres a server.
func Postgres(t testing.TB) *servers.Postgres {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.postgres == nil {
		ctx, cancel := startContext(t)
		defer cancel()
		p, err := servers.StartPostgres(ctx, servers.PostgresConfig{Version: version()})
		started(t, err)
		shared.postgres = p
	}
	return shared.postgres
}

// NewPostgres starts a server for this test alone.
func NewPostgres(t testing.TB, cfg servers.PostgresConfig) *servers.Postgres {
	t.Helper()
	if cfg.Version == "" {
		cfg.Version = version()
	}
	ctx, cancel := startContext(t)
	defer cancel()
	p, err := servers.StartPostgres(ctx, cfg)
	started(t, err)
	closed(t, p)
	return p
}

// NewStandby starts a standby of primary for this test alone.
func NewStandby(t testing.TB, primary *servers.Postgres, cfg servers.StandbyConfig) *servers.Postgres {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	p, err := primary.Standby(ctx, cfg)
	started(t, err)
	closed(t, p)
	return p
}

// Database makes an empty database on the shared server and returns its URL. It
// stays until the server is stopped, slots of it included, so that a test may
// end with connections open.
func Database(t testing.TB) string {
	t.Helper()
	p := Postgres(t)
	shared.mu.Lock()
	shared.database++
	name := fmt.Sprintf("test_%d", shared.database)
	shared.mu.Unlock()
	if err := p.Exec(t.Context(), "postgres", "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return p.URL(name)
}
