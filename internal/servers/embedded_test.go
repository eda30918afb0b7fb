package servers_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestEmbeddedPostgresOfEveryVersion(t *testing.T) {
	t.Parallel()
	for _, major := range servers.EmbeddedVersions() {
		t.Run(major, func(t *testing.T) {
			p := harness.NewPostgres(t, servers.PostgresConfig{Version: major})
			got := query(t, p.URL("postgres"), "SHOW server_version")
			if !strings.HasPrefix(got, major+".") {
				t.Errorf("server_version = %s, want %s", got, major)
			}
			if got := p.VersionNum() / 10000; major != strconv.Itoa(got) {
				t.Errorf("VersionNum() = %d, want %s", p.VersionNum(), major)
			}
			if got := query(t, p.URL("postgres"), "SELECT plugin FROM pg_create_logical_replication_slot('s', 'pgoutput'), pg_replication_slots"); got != "pgoutput" {
				t.Errorf("plugin of a logical slot = %s, want pgoutput", got)
			}
		})
	}
}
