// Package examples holds the tests of the programs beside it.
package examples

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	wire "github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestMain(m *testing.M) { harness.Main(m) }

// language is a way to read a plain entry: it runs read of the key and has the
// loader, if that is called, return what load does. The results are the value
// and "hit", "filled" or "refused".
type language func(t *testing.T, address, key string, load func() string) (value, how string)

// languages are those that this machine has. A missing one is said and left
// out, as a test of its own.
func languages(t *testing.T, test func(t *testing.T, read language)) {
	t.Run("go", func(t *testing.T) { t.Parallel(); test(t, readGo) })
	t.Run("python", func(t *testing.T) {
		t.Parallel()
		test(t, python(t))
	})
	t.Run("typescript", func(t *testing.T) {
		t.Parallel()
		test(t, typescript(t))
	})
}

func python(t *testing.T) language {
	t.Helper()
	path, err := servers.FindPython(t.Context())
	installed(t, err)
	return program(path, "python/plain.py")
}

func typescript(t *testing.T) language {
	t.Helper()
	script, err := compiled()
	installed(t, err)
	node, err := servers.FindNode(t.Context())
	installed(t, err)
	return program(node, script)
}

// compiled is the TypeScript program, compiled once for the package.
var compiled = sync.OnceValues(func() (string, error) {
	source, err := filepath.Abs("typescript/plain.mts")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "lethe-typescript-")
	if err != nil {
		return "", err
	}
	harness.AtEnd(func() error { return os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return servers.CompileTypeScript(ctx, source, dir)
})

func installed(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, servers.ErrNotInstalled) {
		line, _, _ := strings.Cut(err.Error(), "\n")
		t.Skipf("left out: %s", line)
	}
	must(t, err)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program runs one of the example programs, whose loader asks on its standard
// output and takes the answer from its standard input.
func program(interpreter, script string) language {
	return func(t *testing.T, address, key string, load func() string) (value, how string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, interpreter, script, address, key)
		var complaints strings.Builder
		cmd.Stderr = &complaints
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		for lines := bufio.NewScanner(out); lines.Scan(); {
			first, rest, _ := strings.Cut(lines.Text(), ": ")
			if first == "miss" {
				_, err := io.WriteString(in, load()+"\n")
				must(t, err)
				continue
			}
			how, value = first, rest
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%s %s: %v\n%s", interpreter, script, err, complaints.String())
		}
		return value, how
	}
}

// readGo does the same with the calls that the client is made of.
func readGo(t *testing.T, address, key string, load func() string) (value, how string) {
	t.Helper()
	w := open(t, address)
	value, err := w.redis.Get(t.Context(), key).Result()
	if err == nil {
		return value, "hit"
	}
	begun, err := w.store.Begin(t.Context(), coherence.BeginRequest{
		Name: key, Plain: true, Known: coherence.Known{Source: change.Source{Era: 1, SystemID: 1, Timeline: 1}},
	})
	must(t, err)
	value = load()
	reason, err := w.store.Fill(t.Context(), coherence.FillRequest{Ticket: begun.Ticket, Payload: []byte(value), TTL: time.Hour})
	must(t, err)
	if reason != coherence.Stored {
		return value, "refused"
	}
	return value, "filled"
}

// worker is what a worker does to a plain key.
type worker struct {
	t     *testing.T
	store *coherence.Store
	redis *redis.Client
}

func open(t *testing.T, address string) *worker {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = rdb.Close() })
	store, err := coherence.New(t.Context(), rdb, coherence.Options{
		RunID: func(context.Context, string) (string, error) { return "any", nil },
	})
	must(t, err)
	return &worker{t: t, store: store, redis: rdb}
}

func (w *worker) invalidate(key string) {
	w.t.Helper()
	x := change.Position{Era: 1, LSN: 100}
	_, err := w.store.Invalidate(w.t.Context(), []coherence.Invalidation{{Name: key, X: x, Plain: true}})
	must(w.t, err)
}

// have checks which of the value and its ticket are there.
func (w *worker) have(key, value string, ticket bool) {
	w.t.Helper()
	if got := w.redis.Get(w.t.Context(), key).Val(); got != value {
		w.t.Errorf("value of %s: got %q, want %q", key, got, value)
	}
	if got := w.redis.Exists(w.t.Context(), w.store.Layout().Ticket(key)).Val() == 1; got != ticket {
		w.t.Errorf("ticket of %s is there: got %v, want %v", key, got, ticket)
	}
}

func wantRead(t *testing.T, value, how, wantValue, wantHow string) {
	t.Helper()
	if value != wantValue || how != wantHow {
		t.Errorf("read: got %q, %s, want %q, %s", value, how, wantValue, wantHow)
	}
}

func unused(t *testing.T) func() string {
	return func() string { t.Error("the loader was called"); return "" }
}

// A fill is stored, read by every language, and forgotten with its ticket.
func TestPlainFilledAndForgotten(t *testing.T) {
	address := harness.Redis(t).Addr()
	languages(t, func(t *testing.T, read language) {
		for _, pattern := range []string{"%s:rating:1", "%s:{of a}rating:1", "%s:{rating"} {
			key := fmt.Sprintf(pattern, harness.Namespace(t))
			w := open(t, address)
			value, how := read(t, address, key, func() string {
				w.have(key, "", true)
				return "4.5 ★"
			})
			wantRead(t, value, how, "4.5 ★", "filled")
			w.have(key, "4.5 ★", true)
			for _, other := range []language{readGo, read} {
				value, how = other(t, address, key, unused(t))
				wantRead(t, value, how, "4.5 ★", "hit")
			}
			if ttl := w.redis.PTTL(t.Context(), key).Val(); ttl <= 0 || ttl > time.Hour {
				t.Errorf("the value lives for %v, want up to an hour", ttl)
			}
			w.invalidate(key)
			w.have(key, "", false)
		}
	})
}

// The race that a bare SET loses: what was read before a commit is not stored
// after its invalidation.
func TestPlainRefusedAfterInvalidation(t *testing.T) {
	address := harness.Redis(t).Addr()
	languages(t, func(t *testing.T, read language) {
		key := harness.Namespace(t) + ":rating:1"
		w := open(t, address)
		value, how := read(t, address, key, func() string {
			w.invalidate(key)
			return "old"
		})
		wantRead(t, value, how, "old", "refused")
		w.have(key, "", false)

		// Also if somebody else has begun anew meanwhile: their ticket is another.
		value, how = read(t, address, key, func() string {
			w.invalidate(key)
			v, h := readGo(t, address, key, func() string { return "new" })
			wantRead(t, v, h, "new", "filled")
			return "old"
		})
		wantRead(t, value, how, "old", "refused")
		w.have(key, "new", true)
	})
}

// Two that miss at the same time share one ticket, whatever they are written in.
func TestPlainSharedTicket(t *testing.T) {
	address := harness.Redis(t).Addr()
	languages(t, func(t *testing.T, read language) {
		key := harness.Namespace(t) + ":rating:1"
		value, how := readGo(t, address, key, func() string {
			value, how := read(t, address, key, func() string { return "theirs" })
			wantRead(t, value, how, "theirs", "filled")
			return "ours"
		})
		wantRead(t, value, how, "ours", "filled")
		w := open(t, address)
		w.have(key, "ours", true)
	})
}

// Redis before 7.0 refuses SET with NX and GET, and the script is used.
func TestPlainOnRedis62(t *testing.T) {
	languages(t, func(t *testing.T, read language) {
		mini := miniredis.RunT(t)
		refused := make(chan struct{}, 10)
		mini.Server().SetPreHook(func(p *wire.Peer, command string, args ...string) bool {
			old := command == "SET" && len(args) > 3 && strings.EqualFold(args[3], "GET")
			if old {
				refused <- struct{}{}
				p.WriteError("ERR syntax error")
			}
			return old
		})
		key := "rating:1"
		w := open(t, mini.Addr())
		value, how := read(t, mini.Addr(), key, func() string { return "4.5" })
		wantRead(t, value, how, "4.5", "filled")
		w.invalidate(key)
		value, how = read(t, mini.Addr(), key, func() string {
			w.have(key, "", true)
			w.invalidate(key)
			return "old"
		})
		wantRead(t, value, how, "old", "refused")
		if strings.HasSuffix(t.Name(), "/go") {
			return // the Store has asked the server before
		}
		if got := len(refused); got != 2 {
			t.Errorf("SET NX GET was refused %d times, want 2", got)
		}
	})
}
