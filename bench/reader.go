package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lethe-cache/lethe/cdc"
)

// startReader runs a reader of slot that hands on to sink. It has no era and
// stores no position: that is a matter of its start and of once in two seconds,
// and what is compared is how fast it reads.
func startReader(ctx context.Context, url, slot string, sink *nullWriter, logger *slog.Logger) (*running, error) {
	reader, err := cdc.New(cdc.Config{URL: url, Slot: slot, Publications: []string{publication}, Writer: sink, Logger: logger})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	failed, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		if err := reader.Run(ctx); err != nil && ctx.Err() == nil {
			failed <- err
		}
	}()
	return &running{failed: failed, stop: func() error { cancel(); <-done; return nil }}, nil
}

// measureReader compares the reader, handing on to nothing, with pg_recvlogical
// writing to nothing, on the same bytes of the log.
func (e *env) measureReader(ctx context.Context, w *workload) error {
	const metric = "reader_vs_pg_recvlogical"
	if !e.metrics.wants(metric) {
		return nil
	}
	stopProfile, err := e.profile("reader-" + w.name)
	if err != nil {
		return err
	}
	defer stopProfile()
	var pairs []Pair
	defer func() { e.metrics.pairs(metric, w.name, pairs) }()
	for start, round := time.Now(), 0; e.more(round, e.sizes.Rounds, start, 0.06); round++ {
		pair, err := e.alternate(ctx, round, func(side int) (float64, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if side == 0 {
				return e.readOnce(ctx, w)
			}
			return recvlogical(ctx, e.db, w, "bench_recvlogical")
		})
		if err != nil {
			return err
		}
		e.log.Info("read", "workload", w.name, "round", round+1, "reader", int(pair.Subject), "pg_recvlogical", int(pair.Baseline))
		pairs = append(pairs, pair)
	}
	return nil
}

// readOnce drains the workload with the reader, over TCP, and returns the rows
// per second between the moment at which the walsender begins to send and the
// moment at which the last row has been handed on.
func (e *env) readOnce(ctx context.Context, w *workload) (rate float64, err error) {
	const slot = "bench_reader"
	if err := e.db.copySlot(ctx, w.slot(), slot); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	sink := newNullWriter(w.size())
	r, err := startReader(ctx, e.db.server.URL("postgres"), slot, sink, e.log)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	h, err := e.db.hold(ctx, slot, r.failed)
	if err != nil {
		return 0, err
	}
	err = pause(ctx, settle)
	ahead, aheadErr := h.ahead(ctx, e.db, w)
	start, released := h.release()
	if err := errors.Join(err, aheadErr, released); err != nil {
		return 0, err
	}
	select {
	case <-sink.done:
		return perSecond(w.rest(ahead), time.Since(start)), nil
	case err := <-r.failed:
		return 0, fmt.Errorf("reader ended: %w", err)
	case <-ctx.Done():
		return 0, fmt.Errorf("reader handed on %d of %d rows: %w", sink.rows.Load(), w.size(), ctx.Err())
	}
}
