package servers

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cacheName is a name in the cache that no download has: root's cache cannot be
// moved elsewhere by the environment.
func cacheName(t *testing.T) string {
	t.Helper()
	base, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	name := "test-" + t.Name()
	t.Cleanup(func() {
		os.RemoveAll(filepath.Join(base, name))
		os.Remove(filepath.Join(base, name+".lock"))
	})
	return name
}

func TestCacheIsFilledOnceAndReadableByAll(t *testing.T) {
	t.Parallel()
	name := cacheName(t)
	var fills atomic.Int32
	fill := func(_ context.Context, dir string) error {
		fills.Add(1)
		return errors.Join(
			os.Mkdir(filepath.Join(dir, "bin"), 0o700),
			os.WriteFile(filepath.Join(dir, "bin", "program"), nil, 0o700),
			os.WriteFile(filepath.Join(dir, "bin", "data"), nil, 0o600),
		)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := cached(t.Context(), name, fill)
			if err != nil {
				t.Error(err)
				return
			}
			for path, want := range map[string]os.FileMode{"": 0o755, "bin": 0o755, "bin/program": 0o755, "bin/data": 0o644} {
				info, err := os.Stat(filepath.Join(dir, path))
				if err != nil {
					t.Error(err)
				} else if got := info.Mode().Perm(); got != want {
					t.Errorf("mode of %q = %o, want %o", path, got, want)
				}
			}
		})
	}
	wg.Wait()
	if got := fills.Load(); got != 1 {
		t.Errorf("filled %d times, want once", got)
	}
}

func TestCacheKeepsNothingHalfFilled(t *testing.T) {
	t.Parallel()
	name := cacheName(t)
	broken := errors.New("connection lost")
	_, err := cached(t.Context(), name, func(_ context.Context, dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("cached() = %v, want %v", err, broken)
	}
	dir, err := cached(t.Context(), name, func(context.Context, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("after a failed fill the cache holds %v, %v", left, err)
	}
}

func TestCacheStopsWaitingWithItsContext(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that somebody holds: %v, want the context's error", err)
	}
}

func TestDownloadsAreChecked(t *testing.T) {
	t.Parallel()
	published := map[string]string{} // what the repository says of "9.9.9"
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ext, _ := strings.Cut(filepath.Base(r.URL.Path), ".jar"); ext != "" {
			if digest, ok := published[ext]; ok {
				_, _ = w.Write([]byte(digest))
				return
			}
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte("jar"))
	}))
	defer repository.Close()
	const (
		sha256 = "9cc0b3156ea82f09ba46c05d6fc5e7aabe2cd46a3e3ac5bc9d6f05e4e1a3b0f1" // wrong
		sha1   = "0000000000000000000000000000000000000000"
	)
	for _, c := range []struct {
		name, version string
		published     map[string]string
		want          string // in the error
	}{
		{"pinned", "18.4.0", map[string]string{".sha256": "whatever the server says"}, "want " + embeddedDigests["linux-amd64 18.4.0"]},
		{"published", "9.9.9", map[string]string{".sha256": sha256}, "want " + sha256},
		{"older digest", "9.9.9", map[string]string{".sha1": sha1}, "want " + sha1},
		{"none", "9.9.9", nil, "find a digest"},
	} {
		published = c.published
		_, err := fetchEmbedded(t.Context(), repository.URL, "linux-amd64", c.version)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in the error", c.name, err, c.want)
		}
	}
	published = map[string]string{".sha256": "0163f1eea7894350060624d315234d40c508ab251ba121714e234503045faadd"}
	jar, err := fetchEmbedded(t.Context(), repository.URL, "linux-amd64", "9.9.9")
	if err != nil || string(jar) != "jar" {
		t.Errorf("an archive with its right digest: %q, %v", jar, err)
	}
}
