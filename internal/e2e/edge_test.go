package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/edge/header"
	"github.com/lethe-cache/lethe/internal/harness"
)

// edgeCache is an endpoint that looks into Redis whenever it is told something.
type edgeCache struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	asked  int
	told   []string
	early  []string
}

func newEdgeCache(t *testing.T, look func() (string, bool)) *edgeCache {
	e := &edgeCache{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		value, there := look()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.asked++
		if e.status != 0 {
			w.WriteHeader(e.status)
			return
		}
		if err := header.Verify([]byte("s3cret"), r.Header.Get(header.Timestamp), r.Header.Get(header.Signature), body, 0); err != nil {
			e.early = append(e.early, err.Error())
		}
		if there && strings.Contains(string(body), `"item:1"`) {
			e.early = append(e.early, fmt.Sprintf("%s while Redis has %q", body, value))
		}
		e.told = append(e.told, string(body))
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *edgeCache) set(status int) (asked int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status = status
	return e.asked
}

// until waits until one of the texts was told, behind the first ones.
func (e *edgeCache) until(t *testing.T, behind int, want ...string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, func() error {
		e.mu.Lock()
		defer e.mu.Unlock()
		told := strings.Join(e.told[behind:], "\n")
		for _, w := range want {
			if strings.Contains(told, w) {
				return nil
			}
		}
		return fmt.Errorf("none of %q is in %q", want, told)
	})
}

// TestEdge: an edge cache is told what was forgotten when Redis has forgotten
// it, and though lethe was killed between the two.
func TestEdge(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	rdb := harness.Redis(t)
	var c *cache
	var mu sync.Mutex
	e := newEdgeCache(t, func() (string, bool) {
		mu.Lock()
		defer mu.Unlock()
		if c == nil {
			return "", false
		}
		return c.get(itemName)
	})
	env := settingsFor(t, database, itemRules+"edge:\n  - {name: origin, url: \""+e.URL+"\", secret_env: EDGE_SECRET}\n")
	l := start(t, env, "run")
	if code := l.wait(20 * time.Second); code != 2 || !strings.Contains(l.output.String(), `edge "origin": the environment has no EDGE_SECRET`) {
		t.Fatalf("exit code %d without the variable, want 2", code)
	}
	env["EDGE_SECRET"] = "s3cret"
	l = start(t, env, "run")
	l.ready()
	e.until(t, 0, `"everything":true`)
	mu.Lock()
	c = openCache(t, rdb.URL(), "item")
	mu.Unlock()
	c.warm(itemName, "one")
	execute(t, database, `UPDATE items SET name = 'uno' WHERE id = 1`)
	e.until(t, 0, `"item:1"`)

	asked := e.set(http.StatusServiceUnavailable)
	execute(t, database, `INSERT INTO items VALUES (2, 'two')`)
	harness.Eventually(t, 20*time.Second, harness.True("the endpoint is asked", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.asked > asked
	}))
	l.kill()
	e.set(0)
	e.mu.Lock()
	behind := len(e.told)
	e.mu.Unlock()
	l = start(t, env, "run")
	// The raises of the first start come again within ten seconds of it, and
	// what forgets everything needs no names.
	e.until(t, behind, `"item:2"`, `"everything":true`)
	l.ready()
	_, body, err := l.get("/metrics")
	if err != nil || !strings.Contains(body, `lethe_edge_requests_total{endpoint="origin",result="done"}`) {
		t.Errorf("no metrics of the edge, %v", err)
	}
	l.stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.early) > 0 {
		t.Errorf("told too early, or without a signature: %q", e.early)
	}
}
