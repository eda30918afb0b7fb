package client

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// What Redis does not permit is said by Open: nothing would be cached, or L1
// never be used, and a log line is easily missed.
func TestOpenSaysWhatIsNotPermitted(t *testing.T) {
	t.Parallel()
	server := harness.NewRedis(t, servers.RedisConfig{})
	admin := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = admin.Close() })
	for user, c := range map[string]struct {
		rules    []any
		password string
		says     string
	}{
		"all":     {rules: []any{"+@all", "allchannels"}, password: "secret"},
		"deaf":    {rules: []any{"+@all", "resetchannels"}, password: "secret", says: "NOPERM"},
		"scripts": {rules: []any{"+@all", "-@scripting", "allchannels"}, password: "secret", says: "NOPERM"},
		"info":    {rules: []any{"+@all", "-info", "allchannels"}, password: "secret", says: "NOPERM"},
		"wrong":   {rules: []any{"+@all", "allchannels"}, password: "guess", says: "WRONGPASS"},
	} {
		args := append([]any{"ACL", "SETUSER", user, "on", ">secret", "~*"}, c.rules...)
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: user, Password: c.password})
		got, err := Open(t.Context(), Options{Redis: rdb, OpenTimeout: 20 * time.Second})
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: got %v, want %q", user, err, c.says)
		}
		if got != nil {
			_ = got.Close()
		}
		_ = rdb.Close()
	}
}
