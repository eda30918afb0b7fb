package clienttest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// The log of the database that is not there.
const (
	era       = 1
	logStart  = 1 << 20
	recordLen = 64 // of a commit; more than change.Bound takes off
	// Less often than the real ones: in a bubble an hour has all of them.
	beatEvery = 500 * time.Millisecond
)

// commit is one that the database shows.
type commit struct {
	x                   change.Position
	keys, tags, classes []string // without the namespace
}

// worker does what Lethe's workers do, with the calls of theirs.
type worker struct {
	ctx    context.Context // of its own life, not the test's: cleanups come later
	cancel context.CancelFunc
	server *server
	redis  *redis.Client
	store  *coherence.Store
	wg     sync.WaitGroup

	mu      sync.Mutex
	insert  uint64   // where the log ends
	pending []commit // not applied, oldest first
	// asked is the token of the last pulse, answer where the log ended then.
	asked  string
	answer change.Position
}

func startWorker(ctx context.Context, s *server, namespace string) (*worker, error) {
	w := &worker{server: s, redis: s.dial(), insert: logStart}
	w.ctx, w.cancel = context.WithCancel(ctx)
	if err := w.prepare(namespace); err != nil {
		w.close()
		return nil, err
	}
	w.wg.Go(w.beats)
	return w, nil
}

// prepare makes the namespace ready, as a first start does.
func (w *worker) prepare(namespace string) (err error) {
	if w.store, err = coherence.New(w.ctx, w.redis, coherence.Options{Namespace: namespace}); err != nil {
		return err
	}
	if _, err := w.store.SetSource(w.ctx, change.Source{Era: era, SystemID: 1, Timeline: 1}); err != nil {
		return err
	}
	// The tables as Store.Seed leaves them. That takes its time in a Redis whose
	// scripts are interpreted, and here nobody else seeds or writes.
	base := change.Position{Era: era, LSN: change.Bound(logStart)}.String()
	for i := range coherence.BucketsSingle/coherence.BucketsPerCell + 1 {
		w.server.mini.HSet(w.store.Layout().CellKey(i), "base", base)
	}
	w.insert += recordLen
	return w.beat()
}

func (w *worker) close() {
	w.cancel()
	w.wg.Wait()
	_ = w.redis.Close()
}

func at(lsn uint64) change.Position { return change.Position{Era: era, LSN: change.LSN(lsn)} }

// beats sends heartbeats, as the owner of partition 0 does.
func (w *worker) beats() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-tick.C:
			w.again()
		}
	}
}

// again sends a heartbeat. While Redis is down there are none.
func (w *worker) again() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.beat()
}

// beat tells v and w: everything below the first commit that is not applied. It
// leaves the watermark in Redis, and a pulse by which clients know how old that
// is; see coherence.Pulse.
func (w *worker) beat() error {
	p := w.position()
	if err := w.store.WriteWatermarks(w.ctx, coherence.PartitionStep, p, change.Position{}); err != nil {
		return err
	}
	pulse := coherence.NewPulse()
	pulse.Answer, pulse.Of = w.answer, w.asked
	w.answer, w.asked = change.Position{}, ""
	if err := w.store.Heartbeat(w.ctx, coherence.Message{V: p, W: p}, pulse); err != nil {
		return err // whether it was sent is not known: it is not answered
	}
	w.answer, w.asked = change.Position{Era: era, LSN: change.Bound(change.LSN(w.insert))}, pulse.Token
	return nil
}

func (w *worker) position() change.Position {
	if len(w.pending) > 0 {
		return w.pending[0].x
	}
	return at(w.insert)
}

func (w *worker) commit(c commit) (token string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.x = at(w.insert)
	w.insert += recordLen
	w.pending = append(w.pending, c)
	return at(w.insert).String()
}

func (w *worker) token() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return at(w.insert).String()
}

// apply applies what is pending and returns the number of the last broadcast
// and a watermark that no heartbeat before it had.
func (w *worker) apply() (number uint64, mark string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server.isDown() {
		return 0, "", nil
	}
	for len(w.pending) > 0 {
		c := w.pending[0]
		if err := w.one(&c); err != nil {
			return 0, "", fmt.Errorf("apply a commit: %w", err)
		}
		w.pending = w.pending[1:]
	}
	w.insert += recordLen
	if err := w.beat(); err != nil {
		return 0, "", err
	}
	ctl, err := w.store.Control(w.ctx)
	if err != nil {
		return 0, "", err
	}
	return ctl.Number, at(w.insert).String(), nil
}

// one applies a commit: Redis first, then the broadcast, then what was made
// from the keys. v is the end of the commit's record: it is visible.
func (w *worker) one(c *commit) error {
	v := at(uint64(c.x.LSN) + recordLen)
	if len(c.classes) > 0 {
		_, err := w.store.Raise(w.ctx, coherence.RaiseRequest{
			Cause: "clienttest:" + c.x.String(), Reason: change.ReasonManual, Classes: c.classes,
			X: c.x, Bound: change.Position{Era: era, LSN: change.Bound(v.LSN)},
		})
		if err != nil {
			return err
		}
	}
	keys, tags := w.full(c.keys), w.full(c.tags)
	if len(keys) > 0 {
		if err := w.forget(keys, c.x); err != nil {
			return err
		}
		named, _, err := w.store.BroadcastKeys(w.ctx, coherence.Message{X: c.x, V: v, Names: keys}, nil)
		if err != nil {
			return err
		}
		if len(named) > 0 { // of whichever class: a purge too many does no harm
			tags = append(tags, keys...)
		}
	}
	if len(tags) == 0 {
		return nil
	}
	p := coherence.Purge{X: c.x, Tags: tags}
	if err := w.store.OpenPurge(w.ctx, p, v); err != nil {
		return err
	}
	for _, tag := range tags {
		if err := w.sweep(tag, c.x); err != nil {
			return err
		}
	}
	return w.store.ClosePurge(w.ctx, p, v)
}

func (w *worker) full(names []string) []string {
	full := make([]string, len(names))
	for i, n := range names {
		full[i] = w.store.Layout().Name(n)
	}
	return full
}

// forget unlinks entries, exact ones and plain ones, in every version that
// somebody has filled or is about to: their tickets are there.
func (w *worker) forget(names []string, x change.Position) error {
	var batch []coherence.Invalidation
	for _, n := range names {
		batch = append(batch, coherence.Invalidation{Name: n, X: x, Plain: true})
	}
	for _, have := range w.server.mini.Keys() {
		if ticket, ok := strings.CutSuffix(have, "}:t"); ok {
			have = strings.TrimPrefix(ticket, "{") // of a plain entry
		}
		i := strings.LastIndexByte(have, '@')
		if i < 0 {
			continue
		}
		if _, err := strconv.ParseUint(have[i+1:], 10, 32); err != nil {
			continue
		}
		for _, n := range names {
			if have[:i] == n {
				batch = append(batch, coherence.Invalidation{Name: have, X: x, Plain: true})
			}
		}
	}
	_, err := w.store.Invalidate(w.ctx, batch)
	return err
}

func (w *worker) sweep(tag string, x change.Position) error {
	for cursor := uint64(0); ; {
		members, next, err := w.store.Members(w.ctx, tag, cursor, 0)
		if err != nil {
			return err
		}
		if len(members) > 0 {
			if err := w.forget(members, x); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
