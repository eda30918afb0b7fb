package warmer

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

const webRules = `
version: 1
namespace: NS
entries:
  page:
    key: page:{id}
    ttl: 1h
    tags: ["shelf:{shelf}"]
    load: {http: {url: "URL", secret_env: SECRET, timeout: 1m, batch: 3}}
`

// application answers requests of a loader.
type application struct {
	*httptest.Server
	asked atomic.Int32
	// answer gets the keys; what it returns is the body.
	answer func(w http.ResponseWriter, keys []string) string
	t      testing.TB
}

func newApplication(t testing.TB) *application {
	a := &application{t: t}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.Header.Get(headerSignature) != sign("s3cret", r.Header.Get(headerTime), body) {
			t.Errorf("%s with signature %q", r.Method, r.Header.Get(headerSignature))
		}
		var keys []string
		if err := json.Unmarshal(body, &keys); err != nil || len(keys) == 0 || len(keys) > 3 {
			t.Errorf("body %s", body)
		}
		text := a.answer(w, keys)
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(a.Close)
	return a
}

// webBundle is a bundle whose class page is loaded from an application.
func webBundle(t *testing.T) (*bundle, *application) {
	t.Helper()
	b, a := newBundle(t), newApplication(t)
	b.record(t)
	b.set = parse(t, strings.NewReplacer("NS", b.set.Namespace, "URL", a.URL).Replace(webRules))
	plan, err := b.set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	b.Warmer.cfg.Rules = planOf(plan)
	b.follow(t)
	b.loader.web.env = func(name string) string { return map[string]string{"SECRET": "s3cret"}[name] }
	return b, a
}

func TestHTTPLoader(t *testing.T) {
	t.Parallel()
	b, a := webBundle(t)
	a.answer = func(_ http.ResponseWriter, keys []string) string {
		out := map[string]any{"page:99": map[string]any{"shelf": 1}} // nobody asked for it
		for _, k := range keys {
			switch k {
			case "page:2":
				out[k] = nil
			case "page:3": // left out
			case "page:4":
				out[k] = map[string]any{"n": k} // its tag can not be known
			case "page:5":
				out[k] = map[string]any{"n": k, "shelf": nil}
			default:
				out[k] = map[string]any{"n": k, "shelf": 7}
			}
		}
		raw, _ := json.MarshalIndent(out, "", "  ")
		return string(raw)
	}
	b.fillOK(t, "page", Options{}, Result{Stored: 2, NoRow: 2, Refused: map[string]int{"tags": 1}}, "page:1", "page:2", "page:3", "page:4", "page:5")
	if n := a.asked.Load(); n != 2 {
		t.Errorf("%d requests for five keys in batches of three", n)
	}
	raw, err := b.rdb.Get(t.Context(), b.set.FullName("page:1")).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h, payload, err := coherence.Parse(raw)
	if err != nil || string(payload) != `{"n":"page:1","shelf":7}` {
		t.Errorf("payload %s, %v", payload, err)
	}
	if len(h.Names) != 1 || h.Names[0].Name != b.set.FullName("shelf:7") || h.Stamp.Era != 1 || h.Stamp.LSN == 0 {
		t.Errorf("header %+v", h)
	}
	members, _, err := b.store.Members(t.Context(), b.set.FullName("shelf:7"), 0, 10)
	if err != nil || len(members) != 1 {
		t.Errorf("members %v, %v", members, err)
	}
}

// An answer of entries says tags and TTL itself.
func TestHTTPLoaderEntries(t *testing.T) {
	t.Parallel()
	b, a := webBundle(t)
	a.answer = func(w http.ResponseWriter, _ []string) string {
		w.Header().Set("Content-Type", entriesType+"; charset=utf-8")
		return `{"page:1": {"value": [1, 2], "tags": ["a", "b"], "ttl": "90s"}, "page:2": {"value": 3, "tags": []}, "page:3": {"value": null}}`
	}
	b.fillOK(t, "page", Options{}, Result{Stored: 2, NoRow: 1}, "page:1", "page:2", "page:3")
	raw, err := b.rdb.Get(t.Context(), b.set.FullName("page:1")).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if h, payload, err := coherence.Parse(raw); err != nil || string(payload) != "[1,2]" || len(h.Names) != 2 {
		t.Errorf("%s %+v %v", payload, h.Names, err)
	}
	if ttl := b.rdb.PTTL(t.Context(), b.set.FullName("page:1")).Val(); ttl > 90*time.Second || ttl < time.Second {
		t.Errorf("ttl %s, want 90s", ttl)
	}
}

// What can not be taken at its word is an error, and nothing of it is stored.
func TestHTTPLoaderRefusesAnswers(t *testing.T) {
	t.Parallel()
	b, a := webBundle(t)
	for name, c := range map[string]struct {
		answer  func(w http.ResponseWriter) string
		want    string
		repeats bool
	}{
		"no JSON": {answer: func(http.ResponseWriter) string { return "hello" }, want: "no JSON object"},
		"list":    {answer: func(http.ResponseWriter) string { return `[1]` }, want: "no JSON object"},
		"cut off": {answer: func(http.ResponseWriter) string { return `{"page:1": {"shelf": 1}` }, want: "cut off"},
		"more":    {answer: func(http.ResponseWriter) string { return `{"page:1": {"shelf": 1}} {}` }, want: "more behind"},
		"twice":   {answer: func(http.ResponseWriter) string { return `{"page:1": {"shelf": 1}, "page:1": {"shelf": 2}}` }, want: "twice"},
		"UTF-8":   {answer: func(http.ResponseWriter) string { return "{\"page:1\": {\"shelf\": \"\xff\"}}" }, want: "UTF-8"},
		"unknown field": {answer: func(w http.ResponseWriter) string {
			w.Header().Set("Content-Type", entriesType)
			return `{"page:1": {"value": 1, "tag": ["x"]}}`
		}, want: "unknown field"},
		"ttl": {answer: func(w http.ResponseWriter) string {
			w.Header().Set("Content-Type", entriesType)
			return `{"page:1": {"value": 1, "ttl": "-1s"}}`
		}, want: "duration"},
		"too much": {answer: func(http.ResponseWriter) string { return `{"page:1": "` + strings.Repeat("x", answerMax) + `"}` }, want: "more than 64 MB"},
		"redirection": {answer: func(w http.ResponseWriter) string {
			w.Header().Set("Location", a.URL+"/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return ""
		}, want: "307"},
		"not allowed": {answer: func(w http.ResponseWriter) string { w.WriteHeader(http.StatusUnauthorized); return "" }, want: "401"},
		"busy":        {answer: func(w http.ResponseWriter) string { w.WriteHeader(http.StatusServiceUnavailable); return "" }, want: "503", repeats: true},
	} {
		t.Run(name, func(t *testing.T) {
			a.answer = func(w http.ResponseWriter, _ []string) string { return c.answer(w) }
			before := a.asked.Load()
			r, err := b.Fill(t.Context(), "page", b.names("page:1"), Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || r.Stored != 0 || strings.Contains(err.Error(), a.URL) {
				t.Errorf("%+v, %v, want an error with %q and no URL", r, err, c.want)
			}
			if n := a.asked.Load() - before; c.repeats && n != webTries || !c.repeats && n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

func TestHTTPLoaderTriesAgainAndNeedsASecret(t *testing.T) {
	t.Parallel()
	b, a := webBundle(t)
	a.answer = func(w http.ResponseWriter, _ []string) string {
		if a.asked.Load() < webTries {
			w.WriteHeader(http.StatusBadGateway)
			return ""
		}
		return `{"page:1": {"shelf": 1}}`
	}
	b.fillOK(t, "page", Options{}, Result{Stored: 1}, "page:1")
	b.loader.web.env = func(string) string { return "" }
	if _, err := b.Fill(t.Context(), "page", b.names("page:1"), Options{}); err == nil || !strings.Contains(err.Error(), "SECRET is not set") {
		t.Errorf("without a secret: %v", err)
	}
}

// http in the clear goes to this machine, whatever a name resolves to.
func TestHTTPLoaderStaysOnThisMachine(t *testing.T) {
	t.Parallel()
	w := newWeb()
	defer w.close()
	if _, err := w.local.Get("http://192.0.2.1:1/"); err == nil || !strings.Contains(err.Error(), "not this machine") {
		t.Errorf("Get: %v", err)
	}
}

// The form that docs/warm.md gives, to the letter.
func TestSignature(t *testing.T) {
	t.Parallel()
	got := sign("s3cret", "1800000000", []byte(`["product:42"]`))
	if want := "sha256=48c324893bdfef3bba4d51487f61598fa4010c5eb61f1f81fda8f4947412e8d4"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What is related to an entry is filled with it, one step far.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	b.set = parse(t, strings.NewReplacer("NS", b.set.Namespace).Replace(`
version: 1
namespace: NS
entries:
  a: {key: "a:{id}", ttl: 1h, prefetch: ["b:{id}", "x:{id}"], load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}}
  b: {key: "b:{id}", ttl: 1h, prefetch: ["c:{id}", "a:{id}"], load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}}
  c: {key: "c:{id}", ttl: 1h, load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}}
  x: {key: "x:{id}"}
`))
	plan, err := b.set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	b.Warmer.cfg.Rules = planOf(plan)
	b.follow(t)
	b.fillOK(t, "a", Options{Prefetch: true}, Result{Stored: 2}, "a:1", "a:2")
	for name, want := range map[string]int64{"a:1": 1, "b:1": 1, "b:2": 1, "c:1": 0, "x:1": 0, "b:3": 0} {
		if n := b.rdb.Exists(t.Context(), b.set.FullName(name)).Val(); n != want {
			t.Errorf("%s: %d, want %d", name, n, want)
		}
	}
}
