package warmer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// reloads lets the rules of a bundle be replaced by others.
func (b *bundle) reloads(t testing.TB) (reload func(text string)) {
	t.Helper()
	var plan atomic.Pointer[rules.Plan]
	plan.Store(b.Warmer.cfg.Rules())
	b.Warmer.cfg.Rules = plan.Load
	return func(text string) {
		t.Helper()
		next, err := parse(t, strings.ReplaceAll(text, "NS", b.set.Namespace)).Compile()
		if err != nil {
			t.Fatal(err)
		}
		plan.Store(next)
	}
}

// limited gives the bundle a limiter of which all is taken; waits returns when
// a load waits for it.
func (b *bundle) limited(t testing.TB) (taken *Permit, waits func()) {
	t.Helper()
	l := NewLimiter(LimiterConfig{Rate: -1, Concurrency: 1})
	b.Warmer.cfg.Limiter = l
	taken, err := l.Acquire(t.Context(), "other", 1, PriorityRewarm)
	if err != nil {
		t.Fatal(err)
	}
	return taken, func() {
		t.Helper()
		harness.Eventually(t, patience, harness.True("a load waits for the limiter", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.mu.waiting[PriorityWarm])+len(l.mu.waiting[PriorityRewarm]) > 0
		}))
	}
}

// A reload gives a class other tags and raises it, while a load waits for its
// turn: what that load stores is of the new generation, and so must be its tags.
func TestFillTakesTheRulesOfItsGeneration(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	reload := b.reloads(t)
	taken, waits := b.limited(t)
	type outcome struct {
		r   Result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := b.Fill(t.Context(), "product", b.names("product:1"), Options{})
		done <- outcome{r, err}
	}()
	waits()
	reload(strings.ReplaceAll(fillRules, `"category:{category_id}"`, `"name:{name}"`))
	if _, err := b.store.Raise(t.Context(), coherence.RaiseRequest{Classes: []string{"product"}, Cause: "reload"}); err != nil {
		t.Fatal(err)
	}
	b.follow(t)
	taken.Done(0, 0, false)
	if o := <-done; o.err != nil || o.r.Stored != 1 {
		t.Fatalf("Fill = %+v, %v", o.r, o.err)
	}
	raw, err := b.rdb.Get(t.Context(), b.set.FullName("product:1")).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := coherence.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	control, err := b.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	if h.Generation != control.Known("product").Generation {
		t.Fatalf("generation %v, want %v", h.Generation, control.Known("product").Generation)
	}
	if want := b.set.FullName("name:p1"); len(h.Names) != 1 || h.Names[0].Name != want {
		t.Errorf("it has the names %v, want %s alone: a purge of that would miss it", h.Names, want)
	}
}

// A class that a reload takes away while its load waits is not filled any more.
func TestFillOfAClassThatGoes(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	reload := b.reloads(t)
	taken, waits := b.limited(t)
	done := make(chan error, 1)
	go func() {
		r, err := b.Fill(t.Context(), "raw", b.names("raw:1"), Options{})
		if err == nil {
			err = fmt.Errorf("filled: %+v", r)
		}
		done <- err
	}()
	waits()
	from, to := strings.Index(fillRules, "  raw:"), strings.Index(fillRules, "  versioned:")
	reload(fillRules[:from] + fillRules[to:])
	taken.Done(0, 0, false)
	if err := <-done; !errors.Is(err, errGone) {
		t.Errorf("Fill: %v, want errGone", err)
	}
	if n := b.rdb.Exists(t.Context(), b.set.FullName("raw:1")).Val(); n != 0 {
		t.Error("raw:1 was filled")
	}
}

// What a reload takes out of the warm-ups of the start is not waited for.
func TestWarmupOfTheStartThatGoes(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	reload := b.reloads(t)
	reload(fillRules + "warm: [{entry: bare, sql: 'SELECT 1 AS id', on_start: true, deadline: 24h}]\n")
	tried := make(chan struct{})
	var once sync.Once
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(context.Context, []string) (map[string]Value, error) {
		once.Do(func() { close(tried) })
		return nil, errors.New("not today")
	}}
	u := b.warmups(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx) }()
	<-tried
	reload(fillRules)
	harness.Eventually(t, 60*time.Second, func() error {
		if list, over := u.Starting(); !over {
			return fmt.Errorf("the start waits for %v", list)
		}
		return nil
	})
	cancel()
	<-done
}
