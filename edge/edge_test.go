package edge

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/edge/header"
	"github.com/lethe-cache/lethe/internal/harness"
)

// The three forms, byte for byte, and what goes into each of them.
func TestFormats(t *testing.T) {
	t.Parallel()
	own, fastly, flare := newServer(t), newServer(t), newServer(t)
	w := newWorld(t, `
  - {name: own, url: "%s/forget", secret_env: SECRET, headers: {X-Team: shop}}
  - {name: fastly, url: "%s/service/a/purge", format: surrogate-key, everything: "%s/service/a/purge_all", headers_env: {Fastly-Key: KEY}, classes: [product], with_namespace: true}
  - {name: flare, url: "%s/purge_cache", format: cache-tag, token_env: TOKEN, keys: false}
`, own.URL, fastly.URL, fastly.URL, flare.URL)
	s := w.run()
	// Each is new, so it is told to forget everything, twice.
	own.until(t, `"everything":true`)
	flare.until(t, `{"purge_everything":true}`)
	w.empty()
	if p := fastly.all(); len(p) != 2 || p[0].path != "/service/a/purge_all" || p[0].says() != "" || p[0].header.Get("Fastly-Key") != "k3y" {
		t.Errorf("fastly was told %+v first, want two POST of /service/a/purge_all", p)
	}
	for _, e := range []*server{own, fastly, flare} {
		e.forget()
	}
	f := products("42", "4 2")
	f.Keys["page"] = []string{"shop:page:1"}
	f.Tags, f.Classes = []string{"shop:category:7"}, []string{"page", "product"}
	w.keep(s.Sink, f)
	w.empty()
	for _, got := range []struct {
		who  string
		e    *server
		want string
	}{
		{"fastly", fastly, "shop:product:42 shop:product:4%202 shop:category:7 class:product"},
		{"flare", flare, `{"tags":["category:7","class:page","class:product"]}`},
	} {
		if told := got.e.taken(); !slices.Equal(told, []string{got.want, got.want}) {
			t.Errorf("%s was told %q, want twice %q", got.who, told, got.want)
		}
	}
	posts := own.all()
	if len(posts) != 2 {
		t.Fatalf("own was told %d times, want twice", len(posts))
	}
	var m message
	if err := json.Unmarshal([]byte(posts[0].body), &m); err != nil {
		t.Fatal(err)
	}
	m.ID = ""
	got, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"id":"","x":"0001000000000000004d","namespace":"shop","keys":["page:1","product:42","product:4 2"],"tags":["category:7"],"classes":["page","product"]}`
	if string(got) != want {
		t.Errorf("own was told\n%s, want\n%s", got, want)
	}
	h := posts[0].header
	if err := header.Verify([]byte("s3cret"), h.Get(header.Timestamp), h.Get(header.Signature), []byte(posts[0].body), time.Minute); err != nil {
		t.Errorf("signature: %v", err)
	}
	if err := header.Verify([]byte("other"), h.Get(header.Timestamp), h.Get(header.Signature), []byte(posts[0].body), time.Minute); err == nil {
		t.Error("a signature fits any secret")
	}
	if h.Get("X-Team") != "shop" || h.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", h)
	}
	if got := flare.all()[0].header.Get("Authorization"); got != "Bearer t0ken" {
		t.Errorf("Authorization %q", got)
	}
}

// A request carries at most `batch` names, and no header grows without end.
func TestBatches(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s", format: surrogate-key, everything: all, batch: 3}`, e.URL)
	s := w.run(e)
	f := products("1", "2", "3", "4", "5", "6", "7")
	f.Tags = []string{"shop:product:1"} // the same word as a key
	w.keep(s.Sink, f)
	e.until(t, "product:1 product:2 product:3", "product:4 product:5 product:6", "product:7")
	w.empty()
	e.forget()
	long := strings.Repeat("x", 255)
	w.edges[0].Batch = 256
	var many Forgotten
	for i := range 100 {
		many.Tags = append(many.Tags, "shop:"+string(rune('a'+i%26))+long[:200]+string(rune('a'+i/26)))
	}
	w.keep(s.Sink, many)
	w.empty()
	for _, p := range e.all() {
		if n := len(p.header.Get("Surrogate-Key")); n > headerMost {
			t.Errorf("a header of %d bytes", n)
		}
	}
}

// An endpoint that fails, is slow, or asks for time gets everything in the end,
// and no request comes before the time that it asked for.
func TestEndpointsThatFail(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s"}`, e.URL)
	s := w.run(e)
	var mu sync.Mutex
	n := 0
	var limited, next time.Time
	e.set(func(_ post, rw http.ResponseWriter) bool {
		mu.Lock()
		defer mu.Unlock()
		n++
		switch n {
		case 1:
			rw.WriteHeader(http.StatusInternalServerError)
		case 2:
			panic(http.ErrAbortHandler) // the connection is cut
		case 3:
			limited = time.Now()
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
		case 4:
			next = time.Now()
			rw.WriteHeader(http.StatusFound)
		case 5:
			rw.WriteHeader(http.StatusForbidden) // somebody will mend it
		default:
			return true
		}
		return false
	})
	w.keep(s.Sink, products("1"))
	e.until(t, `"product:1"`)
	w.keep(s.Sink, products("2"))
	e.until(t, `"product:2"`)
	mu.Lock()
	if d := next.Sub(limited); d < time.Second {
		t.Errorf("it asked for a second, and got %s", d)
	}
	mu.Unlock()
	e.set(func(_ post, rw http.ResponseWriter) bool { // it flaps: every other request fails
		mu.Lock()
		defer mu.Unlock()
		if n++; n%2 == 0 {
			rw.WriteHeader(http.StatusBadGateway)
			return false
		}
		return true
	})
	for i := range 20 {
		w.keep(s.Sink, products("flap"+string(rune('a'+i))))
	}
	w.empty()
	for i := range 20 {
		e.until(t, "product:flap"+string(rune('a'+i)))
	}
	if !strings.Contains(w.logs.String(), "refuses us") {
		t.Error("no line says that it refused us")
	}
}

// Nothing is lost with the process: whoever comes next tells it.
func TestAnotherTellsWhatTheFirstDidNot(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s"}`, e.URL)
	first := w.run(e)
	stuck := make(chan struct{}, 100)
	e.set(func(_ post, rw http.ResponseWriter) bool {
		stuck <- struct{}{}
		rw.WriteHeader(http.StatusServiceUnavailable)
		return false
	})
	w.keep(first.Sink, products("1"))
	<-stuck
	first.stop()
	w.keep(first.Sink, products("2")) // between Redis and the post
	// Killed instead of stopped: nobody gave the lease back.
	if _, err := w.pool.Exec(t.Context(), `UPDATE lethe.edge_outbox SET due_at = clock_timestamp() + interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	e.set(nil)
	e.forget()
	w.cfg.Alone = true
	w.start(w.sink())
	e.until(t, `"product:1"`, `"product:2"`)
	w.empty()
}

// Two processes share the table: each row is told by one of them, and by the
// other if that one dies while it has it.
func TestLease(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s"}`, e.URL)
	s := w.run(e)
	s.stop()
	w.keep(s.Sink, products("1"))
	o := outbox{db: w.pool, owner: w.cfg.Owner}
	rows, err := o.take(t.Context(), "e", 300*time.Millisecond)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if more, err := o.take(t.Context(), "e", time.Second); err != nil || len(more) != 0 {
		t.Errorf("taken by two: %d rows, %v", len(more), err)
	}
	w.start(w.sink()) // the one who took it is dead
	e.until(t, `"product:1"`)
	w.empty()
}

// Two had a row for its first time, because a lease was over: it is told again
// all the same, and later.
func TestTheSecondTimeIsLater(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s"}`, e.URL)
	s := w.run(e)
	s.stop()
	w.keep(s.Sink, products("1"))
	o := outbox{db: w.pool, owner: w.cfg.Owner}
	rows, err := o.take(t.Context(), "e", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d := deliveryOf(w.edges[0], rows)
	for range 2 {
		if err := o.told(t.Context(), d.first, d.second, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.rows(); n != 1 {
		t.Errorf("%d rows, want the one that is to be told again", n)
	}
}

// More waits than may: the endpoint is told to forget everything instead, and
// what comes behind that is told by name.
func TestPending(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s", pending: 100}`, e.URL)
	s := w.run(e)
	e.set(refuse(http.StatusServiceUnavailable))
	for i := range 60 {
		w.keep(s.Sink, products("a"+string(rune('0'+i)), "b"+string(rune('0'+i))))
		if i == 50 {
			s.mu.Lock()
			s.endpoints["e"].bounded = time.Time{} // count now
			s.mu.Unlock()
		}
	}
	if n := w.rows(); n > 20 {
		t.Errorf("%d rows wait, want those since everything was said", n)
	}
	e.forget()
	e.set(nil)
	e.until(t, `"everything":true`)
	w.empty()
	if n := len(e.all()); n > 10 {
		t.Errorf("%d requests, want a few: everything has taken the place of names", n)
	}
	w.keep(s.Sink, products("later"))
	e.until(t, `"product:later"`)
	w.keep(s.Sink, products(slices.Repeat([]string{"x"}, 101)...))
	e.forget()
	e.until(t, `"everything":true`) // in one call
	if !strings.Contains(w.logs.String(), "forget everything instead") {
		t.Error("no line says so")
	}
	if got := value(t, s.registry, "lethe_edge_everything_total", "pending"); got != 2 {
		t.Errorf("lethe_edge_everything_total{pending} %v, want 2", got)
	}
}

// value is that of a counter with a label of that value.
func value(t *testing.T, r *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return 0
}

// A name that the endpoint does not take does not keep the others: it becomes a
// dead letter. An endpoint that takes nothing at all buries nothing.
func TestUnfitNames(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s"}`, e.URL)
	var mu sync.Mutex
	var buried []string
	w.cfg.DeadLetter = func(_ context.Context, endpoint, name string, err error) {
		mu.Lock()
		defer mu.Unlock()
		buried = append(buried, endpoint+" "+name)
	}
	s := w.run(e)
	e.set(func(p post, rw http.ResponseWriter) bool {
		if strings.Contains(p.body, "bad") {
			rw.WriteHeader(http.StatusBadRequest)
			return false
		}
		return true
	})
	w.keep(s.Sink, products("1", "2", "bad", "3", "4"))
	e.until(t, `"product:1"`, `"product:2"`, `"product:3"`, `"product:4"`)
	w.empty()
	mu.Lock()
	if len(buried) == 0 || buried[0] != "e product:bad" {
		t.Errorf("buried %q", buried)
	}
	buried = nil
	mu.Unlock()
	s.stop()

	e.set(refuse(http.StatusBadRequest))
	e.forget()
	w.start(w.sink())
	w.keep(s.Sink, products("5"))
	harness.Eventually(t, patience, harness.True("it is asked", func() bool { return len(e.all()) > 0 }))
	e.set(nil)
	e.until(t, `"product:5"`)
	mu.Lock()
	defer mu.Unlock()
	if len(buried) > 0 {
		t.Errorf("an endpoint that took nothing buried %q", buried)
	}
}

// Endpoints change with the rules: one that is new forgets everything first, one
// that is gone takes what waits for it along, and one that comes back is new.
func TestSet(t *testing.T) {
	t.Parallel()
	a, b := newServer(t), newServer(t)
	w := newWorld(t, `  - {name: a, url: "%s"}`, a.URL)
	s := w.run(a)
	w.edges = w.parse("  - {name: a, url: %q}\n  - {name: b, url: %q}", a.URL, b.URL)
	if err := s.Set(w.edges); err != nil {
		t.Fatal(err)
	}
	b.until(t, `"everything":true`)
	w.empty()
	if got := a.taken(); len(got) > 0 {
		t.Errorf("a, which is as it was, is told %q", got)
	}
	b.set(refuse(http.StatusServiceUnavailable))
	w.keep(s.Sink, products("1"))
	a.until(t, `"product:1"`)
	w.edges = w.edges[:1]
	if err := s.Set(w.edges); err != nil {
		t.Fatal(err)
	}
	w.empty()
	if err := s.Set(w.parse("  - {name: a, url: %q, secret_env: NOWHERE}", a.URL)); err == nil || !strings.Contains(err.Error(), `edge "a": the environment has no NOWHERE`) {
		t.Errorf("a missing variable: %v", err)
	}
	w.keep(s.Sink, products("2")) // as before
	a.until(t, `"product:2"`)
	b.set(nil)
	b.forget()
	if err := s.Set(w.parse("  - {name: a, url: %q}\n  - {name: b, url: %q}", a.URL, b.URL)); err != nil {
		t.Fatal(err)
	}
	b.until(t, `"everything":true`)
	if err := s.Set(nil); err != nil {
		t.Fatal(err)
	}
	if s.Active() {
		t.Error("active without endpoints")
	}
}

// A process with older rules that starts beside one with newer ones knows nothing
// of an endpoint: it does not throw away what waits for it.
func TestOlderProcessStartsBeside(t *testing.T) {
	t.Parallel()
	a, b := newServer(t), newServer(t)
	w := newWorld(t, "  - {name: a, url: %q}\n  - {name: b, url: %q}", a.URL, b.URL)
	s := w.run(a, b)
	b.set(refuse(http.StatusServiceUnavailable))
	w.keep(s.Sink, products("1"))
	a.until(t, `"product:1"`)
	w.edges = w.edges[:1]
	w.run()
	harness.Eventually(t, patience, harness.True("b is not known to the older process", func() bool {
		var known int
		err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM lethe.edge_endpoints`).Scan(&known)
		return err == nil && known == 1
	}))
	b.set(nil)
	b.until(t, `"everything":true`)
	w.empty()
}

// Every class raised is everything, and a class that is not told is nothing.
func TestRaises(t *testing.T) {
	t.Parallel()
	e := newServer(t)
	w := newWorld(t, `  - {name: e, url: "%s", format: cache-tag, classes: [product], everything: all}`, e.URL)
	s := w.run(e)
	w.keep(s.Sink, Forgotten{Classes: []string{"page"}, X: change.Position{Era: 1, LSN: 5}})
	if n := w.rows(); n != 0 {
		t.Errorf("%d rows of a class that is not told", n)
	}
	w.keep(s.Sink, Forgotten{Classes: []string{"*"}})
	w.empty()
	if got := e.taken(); !slices.Equal(got, []string{`{"tags":["all"]}`, `{"tags":["all"]}`}) {
		t.Errorf("told %q", got)
	}
}
