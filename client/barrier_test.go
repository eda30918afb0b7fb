package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func tokenAt(lsn uint64) string {
	return change.Position{Era: testEra, LSN: change.LSN(lsn)}.String()
}

// enrolled are the names in the list of clients.
func (w *world) enrolled() []string {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	all, err := rdb.HGetAll(w.ctx(), w.worker.Layout().Control("clients")).Result()
	w.must(err)
	var names []string
	for _, v := range all {
		_, name, _ := strings.Cut(v, " ")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// in runs a Barrier that is given up after d.
func barrierWithin(t *testing.T, c *Client, token string, d time.Duration) *BarrierError {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	err := c.Barrier(ctx, token)
	var b *BarrierError
	if err != nil && !errors.As(err, &b) {
		t.Fatalf("got %v, want a BarrierError", err)
	}
	return b
}

// barrierNaming is a Barrier that is given up because of some who will never
// acknowledge. Where the machine was too slow for the others, it is tried with
// more time: those who are named then are named for their silence.
func barrierNaming(t *testing.T, c *Client, token, names string) *BarrierError {
	t.Helper()
	for d := 300 * time.Millisecond; ; d *= 2 {
		if e := barrierWithin(t, c, token, d); e == nil || fmt.Sprint(e.Clients) == names || d > 10*time.Second {
			return e
		}
	}
}

// After a Barrier nobody serves what was invalidated before it, in L1 either.
func TestBarrier(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{Name: "a"}, hooks{}), w.open(Options{Name: "b"}, hooks{})
	ea, eb := w.items(a), w.items(b)
	w.get(t.Context(), ea, "item:1")
	w.get(t.Context(), eb, "item:1")
	w.want("enrolled", fmt.Sprint(w.enrolled()), "[a b]")
	done := make(chan error)
	go func() { done <- a.Barrier(context.Background(), tokenAt(160)) }()
	w.write("item:1", 110)
	w.beat(200, 150)
	w.must(<-done)
	w.want("in L1 of b", inL1(eb, "item:1"), false)
	w.want("state of b", b.State(), Live) // it is not out of L1 for lack of life
	w.must(b.Close())
	w.want("enrolled", fmt.Sprint(w.enrolled()), "[a]")
	w.must(a.Barrier(t.Context(), tokenAt(160)))
}

// One that has not handled what came before does not acknowledge, and is named.
func TestBarrierNamesTheSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := make(chan struct{})
	held := make(chan struct{}, 16)
	a := w.open(Options{Name: "a"}, hooks{})
	b := w.open(Options{Name: "b"}, hooks{received: func(r *received) bool {
		if m, err := coherence.ParseMessage([]byte(r.body)); err == nil && m.Kind == coherence.KindKeys {
			held <- struct{}{}
			<-release
		}
		return true
	}})
	eb := w.items(b)
	w.get(t.Context(), eb, "item:1")
	w.write("item:1", 110)
	<-held
	w.beat(200, 150)
	w.heard(a, 150)
	e := barrierNaming(t, a, tokenAt(160), "[b]")
	if e == nil || !e.Passed || fmt.Sprint(e.Clients) != "[b]" || !errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("got %+v, want that b is named", e)
	}
	close(release)
	w.must(a.Barrier(t.Context(), tokenAt(160)))
	w.want("in L1 of b", inL1(eb, "item:1"), false)
}

// A message that b has lost without noticing it: the request tells.
func TestBarrierShowsLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.open(Options{Name: "a"}, hooks{})
	b := w.open(Options{Name: "b"}, swallow(func(m *coherence.Message) bool {
		return m.Kind == coherence.KindKeys || m.Kind == coherence.KindHeartbeat
	}))
	eb := w.items(b)
	w.get(t.Context(), eb, "item:1")
	w.write("item:1", 110)
	w.beat(200, 150)
	w.heard(a, 150)
	w.must(a.Barrier(t.Context(), tokenAt(160)))
	w.want("in L1 of b", inL1(eb, "item:1"), false)
}

func TestBarrierWaitsForW(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := barrierWithin(t, c, tokenAt(5000), 50*time.Millisecond)
	if e == nil || e.Passed || !errors.Is(e, context.DeadlineExceeded) {
		t.Errorf("got %+v, want that the workers have not come to it", e)
	}
	for _, token := range []string{"nonsense", "", unknownToken.String()} {
		if e := barrierWithin(t, c, token, time.Minute); e == nil || errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("%q: got %+v, want an error at once", token, e)
		}
	}
}

// One that died is named until it is struck off; one that the list lost writes
// itself into it with its next epoch.
func TestBarrierList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{Name: "c"}, hooks{})
	w.beat(200, 150)
	w.heard(c, 150)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	list := w.worker.Layout().Control("clients")
	now, err := rdb.Time(t.Context()).Result()
	w.must(err)
	w.must(rdb.HSet(t.Context(), list, "dead", fmt.Sprintf("%d dead", now.Unix())).Err())
	w.must(rdb.HSet(t.Context(), list, "old", fmt.Sprintf("%d old", now.Add(-2*enrollLife).Unix())).Err())
	e := barrierNaming(t, c, tokenAt(160), "[dead]")
	if e == nil || fmt.Sprint(e.Clients) != "[dead]" {
		t.Errorf("got %+v, want that the dead one is named", e)
	}
	w.want("enrolled", fmt.Sprint(w.enrolled()), "[c dead]")
	w.must(rdb.Del(t.Context(), list).Err())
	_, _, err = w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindEpoch})
	w.must(err)
	w.live(c)
	harness.Eventually(t, 10*time.Second, func() error {
		if got := fmt.Sprint(w.enrolled()); got != "[c]" {
			return fmt.Errorf("enrolled: %s", got)
		}
		return nil
	})
}
