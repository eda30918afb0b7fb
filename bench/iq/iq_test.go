package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestMain(m *testing.M) { harness.Main(m) }

// binary is the program, built once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lethe-iq-test-")
	if err != nil {
		return "", err
	}
	harness.AtEnd(func() error { return os.RemoveAll(dir) })
	return servers.BuildLethe(context.Background(), dir)
})

func testWorld(t *testing.T, members int) *world {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	w, err := openWorld(ctx, path, members, 20)
	if errors.Is(err, servers.ErrNotInstalled) {
		t.Skipf("left out: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (v *variant) testCell(t *testing.T, w *world, sessions int) *cell {
	t.Helper()
	cached, err := v.open(t.Context(), w, t.Name()+":")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cached.close(); err != nil {
			t.Error(err)
		}
	})
	return newCell(w.network, cached, sessions)
}

// race is one way in which a cache is left wrong, step by step, between two
// members.
type race struct {
	name string
	// run may wait, with invalidated, until what the write caused has happened.
	run func(ctx context.Context, c *cell, a, b int64, invalidated func()) error
	// lose are the variants that it leaves wrong.
	lose []string
}

var races = []race{
	{
		"a slow reader fills after the write", func(ctx context.Context, c *cell, a, b int64, invalidated func()) error {
			loaded, release := make(chan struct{}), make(chan struct{})
			c.loaded = func() { close(loaded); <-release }
			done := make(chan error, 1)
			go func() {
				_, err := c.read(ctx, profile, a)
				done <- err
			}()
			<-loaded
			c.loaded = nil // the next reader is not slow
			err := c.write(ctx, a, b, false)
			if err == nil {
				invalidated()
			}
			close(release)
			return errors.Join(err, <-done)
		},
		[]string{"plain delete (DEL, COMMIT)", "plain delete (COMMIT, DEL)"},
	},
	{
		"a reader fills between the delete and the commit", func(ctx context.Context, c *cell, a, b int64, _ func()) error {
			c.committing = func() error {
				_, err := c.read(ctx, profile, a)
				return err
			}
			return c.write(ctx, a, b, false)
		},
		[]string{"plain delete (DEL, COMMIT)", "lease only (DEL, COMMIT)"},
	},
	{
		"the writer dies after the commit", func(ctx context.Context, c *cell, a, b int64, _ func()) error {
			_, err := c.read(ctx, profile, a)
			return errors.Join(err, c.write(ctx, a, b, true))
		},
		[]string{"plain delete (COMMIT, DEL)", "lease only (COMMIT, DEL)"},
	},
}

// TestRaces runs each race against each variant: who loses it is known, so the
// judge is tested too.
func TestRaces(t *testing.T) {
	t.Parallel()
	w := testWorld(t, 2*len(races)*len(variants))
	for i, r := range races {
		for j, v := range variants {
			t.Run(r.name+"/"+v.String(), func(t *testing.T) {
				a := int64(2 * (i*len(variants) + j))
				c := v.testCell(t, w, 1)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				invalidated := func() { // Lethe's ticket is gone; the others have none
					harness.Eventually(t, time.Minute, harness.True("the entry is gone", func() bool {
						n, err := w.redis.Exists(ctx, "iq:"+profile.key(a)).Result()
						return err == nil && n == 0
					}))
				}
				if err := r.run(ctx, c, a, a+1, invalidated); err != nil {
					t.Fatal(err)
				}
				c.loaded, c.committing = nil, nil
				read := func() bool {
					wrong, err := c.read(ctx, profile, a)
					if err != nil {
						t.Fatal(err)
					}
					return wrong
				}
				left := func() int {
					n, _, err := c.left(ctx, 0)
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
				switch died := len(c.known[a].ended) == 0; {
				case v.exact && read():
					// Whatever is on its way: a reader that knows of the write
					// sees it.
					t.Error("the first read after the write was wrong")
				case strings.HasPrefix(v.name, "Lethe"):
					harness.Eventually(t, time.Minute, harness.True("nothing is left wrong", func() bool { return !read() && left() == 0 }))
				case slices.Contains(r.lose, v.String()):
					if left() == 0 || !died && !read() {
						t.Error("nothing is left wrong: the race did not take place, or the judge is blind")
					}
				default:
					if n := left(); n > 0 || read() {
						t.Errorf("%d pages are left wrong, want none", n)
					}
				}
			})
		}
	}
}

// TestSessions is the experiment in small: under slow readers the plain cache
// shows wrong reads, or the experiment would prove nothing, and Lethe none.
func TestSessions(t *testing.T) {
	t.Parallel()
	const sessions = 8
	w := testWorld(t, 10)
	slow := func() {
		timer := time.NewTimer(5 * time.Millisecond)
		defer timer.Stop()
		<-timer.C
	}
	for _, v := range variants {
		if !v.exact && v.String() != "plain delete (COMMIT, DEL)" {
			continue
		}
		t.Run(v.String(), func(t *testing.T) {
			c := v.testCell(t, w, sessions)
			c.writes, c.loaded = 0.2, slow
			began := time.Now()
			err := c.run(t.Context(), func() bool {
				took := time.Since(began)
				if v.exact {
					return took > 1500*time.Millisecond && c.reads.Load() > 100 && c.wrote.Load() > 20 || took > time.Minute
				}
				return c.wrong.Load() > 0 || took > time.Minute
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d reads, %d writes, %d wrong reads", c.reads.Load(), c.wrote.Load(), c.wrong.Load())
			if !v.exact {
				if c.wrong.Load() == 0 {
					t.Error("no read was wrong: the provocation does not provoke")
				}
				return
			}
			left, _, err := c.left(t.Context(), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if c.wrong.Load() != 0 || left != 0 || c.reads.Load() == 0 {
				t.Errorf("%d of %d reads were wrong, %d pages are left wrong, want none", c.wrong.Load(), c.reads.Load(), left)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	good := Result{Variant: "Lethe", Sessions: 10, Reads: 100, exact: true, lethe: true}
	wrong, left, idle, plain := good, good, good, Result{Variant: "plain", Reads: 100, Wrong: 50, WrongPercent: 50, Left: 3}
	wrong.Wrong, left.Left, idle.Reads = 1, 1, 0
	for name, c := range map[string]struct {
		cells []Result
		fails bool
	}{
		"good":                    {[]Result{good, plain}, false},
		"a wrong read":            {[]Result{good, wrong}, true},
		"a page left wrong":       {[]Result{left}, true},
		"nothing was read at all": {[]Result{idle}, true},
	} {
		r := Report{Cells: c.cells}
		if err := r.verdict(); (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPercentNeverHidesAWrongRead(t *testing.T) {
	t.Parallel()
	for p, want := range map[float64]string{0: "0", 0.0042: "0.0042%", 1.234: "1.23%"} {
		if got := percent(p); got != want {
			t.Errorf("percent(%v) = %s, want %s", p, got, want)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nope"}, {"now"}, {"-sessions", "many"}, {"-sessions", "0"}, {"-duration", "0s"}, {"-members", "1"}, {"-writes", "1"}, {"-deaths", "2"}} {
		var errs bytes.Buffer
		if code := run(t.Context(), args, io.Discard, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("run(%v) = %d, %q, want 2 and a reason", args, code, errs.String())
		}
	}
	if code := run(t.Context(), []string{"-h"}, io.Discard, io.Discard); code != 0 {
		t.Errorf("run(-h) = %d, want 0", code)
	}
}

// TestDraw: the popular are drawn more often, everybody at some time, and nobody
// who is not there.
func TestDraw(t *testing.T) {
	t.Parallel()
	n := &network{members: 50}
	n.weigh()
	counts := make([]int, n.members)
	r := newRand()
	for range 100_000 {
		counts[n.draw(r)]++
	}
	for m, k := range counts {
		if k == 0 {
			t.Errorf("member %d was never drawn", m)
		}
	}
	if first, last := counts[0], counts[n.members-1]; first < 5*last {
		t.Errorf("the first was drawn %d times, the last %d: that is no skew", first, last)
	}
	if got := profile.key(7); got != "profile:7" {
		t.Errorf("key = %s", got)
	}
}
