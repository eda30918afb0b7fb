package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// GetMany returns the values of many keys (without the namespace), by key. Each
// is read as Get reads it: from L1, from Redis (one pipeline to each node), or
// from the loader: one call for all that are missing (up to MaxBatch at a time),
// that of the call, or else the class's LoadManyWith, or else LoadWith, key by
// key. What another read is loading is waited for and not loaded again, and
// other reads wait for what is loaded here. A key may be given several times.
//
// Keys that do not exist (see LoadManyWith) are not in the map; that is no
// error. If some keys fail, what the others have is returned together with an
// error that wraps a *BatchError, which has the failed keys. After and
// Priority, the end of ctx, and use within a loader are as with Get.
func (e *Class[T]) GetMany(ctx context.Context, keys []string, load ...func(ctx context.Context, keys []string, l *BatchLoad) (map[string]T, error)) (map[string]T, error) {
	if e.err != nil {
		return nil, fmt.Errorf("get many: %w", e.err)
	}
	r := &manyRead[T]{e: e, began: e.c.now(), s: e.c.scopeOf(ctx), values: make(map[string]T, len(keys))}
	if len(load) > 0 && load[0] != nil {
		r.batch = load[0]
	} else if own, ok := e.cl.loadMany.(batchLoader[T]); ok {
		r.batch = own
	}
	seen := make(map[string]struct{}, len(keys))
	var left []string
	for _, key := range keys {
		if _, twice := seen[key]; twice {
			continue
		}
		seen[key] = struct{}{}
		if err := e.checkKey(key); err != nil {
			r.done(key, r.none, meta{}, err)
			continue
		}
		if e.cl.failing && !e.c.live() {
			r.done(key, r.none, meta{}, ErrNotLive)
			continue
		}
		left = append(left, key)
	}
	r.run(ctx, left)
	if len(r.failed) > 0 {
		return r.values, fmt.Errorf("get many of %d: %w", len(seen), &BatchError{Keys: r.failed})
	}
	return r.values, nil
}

// manyRead is one call of GetMany.
type manyRead[T any] struct {
	e      *Class[T]
	s      *scope // of the caller, may be nil
	batch  batchLoader[T]
	began  time.Duration
	none   T
	values map[string]T
	failed map[string]error
}

// done takes the outcome of one key.
func (r *manyRead[T]) done(key string, v T, m meta, err error) {
	e := r.e
	e.cl.counts.read(key, &m, err, e.c.now()-r.began)
	missing := errors.Is(err, ErrNotFound)
	if r.s != nil && r.s.load != nil {
		if err == nil || missing {
			r.s.load.part(e.cl, e.c.full(key), &m)
		} else {
			r.s.load.refuse("part")
		}
	}
	switch {
	case err == nil:
		r.values[key] = v
	case !missing:
		if r.failed == nil {
			r.failed = map[string]error{}
		}
		r.failed[key] = err
	}
}

// single is the loader of one key.
func (r *manyRead[T]) single(key string) func(context.Context, *Load) (T, error) {
	if r.batch != nil {
		return r.batch.single(key)
	}
	return r.e.loader(key, nil)
}

func (r *manyRead[T]) run(ctx context.Context, keys []string) {
	e := r.e
	var bound change.Position
	if r.s != nil {
		bound = r.s.bound
	}
	left := r.ask(ctx, keys, bound)
	if bound.IsZero() {
		r.load(ctx, left, &scope{}, false)
		return
	}
	// If one of them has to wait the others do too, and are loaded together.
	if slices.ContainsFunc(left, func(n need[T]) bool { return n.held }) && e.c.awaitW(ctx, bound) {
		keys = keys[:0:0]
		for _, n := range left {
			keys = append(keys, n.key)
		}
		left = r.ask(ctx, keys, bound)
	}
	for i := range left {
		left[i].spare = nil // it does not contain the write
	}
	r.load(ctx, left, &scope{bound: bound}, true)
}

// need is a key that has to be loaded.
type need[T any] struct {
	key   string
	spare *spare[T]
	held  bool // see answer
}

// ask reads L1 and L2, and serves what may be served. Which keys are left is
// returned.
func (r *manyRead[T]) ask(ctx context.Context, keys []string, bound change.Position) (left []need[T]) {
	e := r.e
	enough := bound.IsZero() || e.c.reached(bound)
	var missed, names []string
	for _, key := range keys {
		var a answer[T]
		if e.askL1(&a, key, enough, bound) {
			r.serve(ctx, key, &a, bound)
			continue
		}
		e.c.heated(e.cl, key)
		missed, names = append(missed, key), append(names, e.c.name(e.cl, key))
	}
	if len(missed) == 0 {
		return nil
	}
	at := e.c.sending()
	raws := e.c.getAll(ctx, names)
	judging := ctx
	if !e.c.live() {
		judging = e.heard(ctx, raws)
	}
	for i, key := range missed {
		var a answer[T]
		if e.askL2(judging, &a, key, names[i], raws[i], at, enough, bound) {
			a = e.ask(ctx, key, bound, e.c.now()) // something overtook the answer
		}
		if !r.serve(ctx, key, &a, bound) {
			left = append(left, need[T]{key: key, spare: a.spare, held: a.held})
		}
	}
	return left
}

// heard reads the control data once for all answers, which came before.
func (e *Class[T]) heard(ctx context.Context, raws [][]byte) context.Context {
	classes := []string{e.cl.name}
	seen := map[string]bool{e.cl.name: true}
	for _, raw := range raws {
		h, _, err := coherence.Parse(raw)
		if err != nil {
			continue
		}
		for _, n := range h.Names {
			if n.Kind == coherence.NameClass && !seen[n.Name] {
				seen[n.Name] = true
				classes = append(classes, n.Name)
			}
		}
	}
	v, err := e.c.control(ctx, classes)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, controlKey{}, v)
}

// serve is the chain of Class.serve up to the load; false if it comes to that.
func (r *manyRead[T]) serve(ctx context.Context, key string, a *answer[T], bound change.Position) bool {
	e := r.e
	if a.ok {
		if a.due && bound.IsZero() {
			e.renew(ctx, key, r.single(key), a.meta.filled)
		}
		v, m, err := e.result(a.value, a.meta)
		r.done(key, v, m, err)
		return true
	}
	if !bound.IsZero() {
		return false
	}
	v, m, ok := e.serveStale(ctx, key, a, r.single(key))
	if ok {
		v, m, err := e.result(v, m)
		r.done(key, v, m, err)
	}
	return ok
}

// load loads what is left, and waits for it.
func (r *manyRead[T]) load(ctx context.Context, left []need[T], s *scope, force bool) {
	if len(left) == 0 {
		return
	}
	if r.batch == nil {
		r.loadEach(ctx, left, s, force)
		return
	}
	e := r.e
	softEnd := time.Now().Add(e.cl.soft)
	flights := e.sharedMany(ctx, left, r.batch, s, force)
	for i := range left {
		n := &left[i]
		v, m, err := e.awaitUntil(ctx, n.key, flights[i], n.spare, softEnd)
		v, m, err = e.rescue(ctx, n.spare, v, m, err)
		r.done(n.key, v, m, err)
	}
}

// loadEach is load with a loader of single keys: no more of them at a time than
// may run, so that none is turned away because of the others.
func (r *manyRead[T]) loadEach(ctx context.Context, left []need[T], s *scope, force bool) {
	e := r.e
	type outcome struct {
		v   T
		m   meta
		err error
	}
	out := make([]outcome, len(left))
	next := make(chan int, len(left))
	for i := range left {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range min(len(left), e.cl.maxLoads) {
		wg.Go(func() {
			for i := range next {
				n, o := &left[i], &out[i]
				if force {
					o.v, o.m, o.err = e.alone(ctx, n.key, r.single(n.key), s)
				} else {
					o.v, o.m, o.err = e.shared(ctx, n.key, r.single(n.key), n.spare)
				}
				o.v, o.m, o.err = e.rescue(ctx, n.spare, o.v, o.m, o.err)
			}
		})
	}
	wg.Wait()
	for i := range left {
		r.done(left[i].key, out[i].v, out[i].m, out[i].err)
	}
}
