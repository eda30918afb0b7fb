package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const patternRules = `
version: 1
namespace: e2e
entries:
  post: {key: "post:{user}:{id}"}
  profile: {key: "profile:{id}"}
rules:
  - name: anything
    table: public.posts
    keys: ["post:{user_id}:{id}"]
`

// TestInvalidatePattern: what matches is gone when the command returns, of
// classes and without one; what was being filled meanwhile is no hit either, and
// what does not match is untouched.
func TestInvalidatePattern(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, `CREATE TABLE posts (id int PRIMARY KEY, user_id int)`)
	env := settingsFor(t, database, patternRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	wantCommand(t, env, 1, []string{"no worker has ever run in this namespace"}, "invalidate", "--pattern", "post:*")
	l := start(t, env, "run")
	l.ready()

	posts, profiles := openCache(t, rdb.URL(), "post"), openCache(t, rdb.URL(), "profile")
	posts.warm("e2e:post:1:1", "old")
	posts.warm("e2e:post:2:1", "old")
	profiles.warm("e2e:profile:1", "kept")
	for _, key := range []string{"e2e:post:", "e2e:poster", "e2ex:post:1", "post:1:1"} { // of no class
		if err := posts.redis.Set(t.Context(), key, "raw", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	inFlight := posts.begin("e2e:post:3:1")

	out := wantCommand(t, env, 0, nil, "invalidate", "--pattern", "post*:*", "-o", "json")
	var done struct {
		Raised, Masters []string
		Unlinked        map[string]int
		Looked          int
	}
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !slices.Equal(done.Raised, []string{"post"}) || len(done.Masters) != 1 || done.Looked == 0 ||
		fmt.Sprint(done.Unlinked) != "map[:1 post:3]" { // the ticket among them
		t.Errorf("done %+v", done)
	}
	posts.fill(inFlight, "old")
	for _, name := range []string{"e2e:post:1:1", "e2e:post:2:1", "e2e:post:3:1"} {
		if v, hit := posts.get(name); hit {
			t.Errorf("%s is still %q", name, v)
		}
	}
	if v, hit := profiles.get("e2e:profile:1"); v != "kept" || !hit {
		t.Errorf("another class: %q, %v", v, hit)
	}
	for key, want := range map[string]int64{"e2e:post:": 0, "e2e:poster": 1, "e2ex:post:1": 1, "post:1:1": 1} {
		if n := posts.redis.Exists(t.Context(), key).Val(); n != want {
			t.Errorf("%d of %s, want %d", n, key, want)
		}
	}
	// A prefix means what it says, also where it looks like a glob.
	for _, key := range []string{"e2e:a*b:1", "e2e:axb:1"} {
		if err := posts.redis.Set(t.Context(), key, "raw", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	wantCommand(t, env, 0, []string{"raised    nothing", "unlinked  1 values", "without a class    1", "on 1 masters"}, "invalidate", "--prefix", "a*b:")
	if n := posts.redis.Exists(t.Context(), "e2e:a*b:1", "e2e:axb:1").Val(); n != 1 {
		t.Errorf("%d keys are left, want the one that does not begin so", n)
	}
	for says, args := range map[string][]string{
		"want one of them":       {"--pattern", "a", "--prefix", "b"},
		"go with none of":        {"--pattern", "a", "--key", "b"},
		"they go with no --at":   {"--pattern", "a", "--at", "1h"},
		"--rate 0":               {"--pattern", "a", "--rate", "0"},
		"forget, and nothing el": {"--pattern", "a", "--action", "stale"},
	} {
		wantCommand(t, env, 2, []string{says}, append([]string{"invalidate"}, args...)...)
	}
	l.stop()
}

// TestInvalidateTagTellsItsProgress: who waits for a large tag is told how far
// the sweep is.
func TestInvalidateTagTellsItsProgress(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, `CREATE TABLE posts (id int PRIMARY KEY, user_id int)`)
	env := settingsFor(t, database, patternRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "post")
	execute(t, database, `INSERT INTO posts VALUES (1, 1)`)
	var control *coherence.ControlState
	harness.Eventually(t, 20*time.Second, func() (err error) { // until v has passed the base of the tables
		if control, err = c.store.Control(t.Context()); err != nil {
			return err
		}
		reason, err := c.store.Register(t.Context(), coherence.RegisterRequest{Name: "e2e:all", Member: "e2e:post:1:0", Stamp: control.V})
		if err == nil && reason != coherence.Stored {
			err = errors.New(reason.String())
		}
		return err
	})
	const n = 60_000
	for from := 0; from < n; from += 5000 {
		var regs []coherence.RegisterRequest
		for i := range 5000 {
			regs = append(regs, coherence.RegisterRequest{Name: "e2e:all", Member: fmt.Sprintf("e2e:post:1:%d", from+i), Stamp: control.V})
		}
		if reasons, err := c.store.RegisterAll(t.Context(), regs); err != nil || reasons[0] != coherence.Stored {
			t.Fatalf("register: %v", err)
		}
	}
	wantCommand(t, env, 0, []string{"1 tag (delete)", "applied everywhere"}, "invalidate", "--tag", "all", "--wait")
	if left, err := c.store.MemberCount(t.Context(), "e2e:all"); err != nil || left > n/2 {
		t.Errorf("%d of %d members are left behind the sweep (%v)", left, n, err)
	}
	sweeps, err := c.store.Sweeps(t.Context())
	if err != nil || len(sweeps) > 1 || len(sweeps) == 1 && sweeps[0].Done < n {
		t.Errorf("sweeps %+v (%v)", sweeps, err) // none if it took less than the first report
	}
	l.stop()
}
