package main

import (
	"context"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/stream/direct"
	"github.com/lethe-cache/lethe/stream/kafka"
)

// patience is how long readiness waits for the second raise of a start, which
// an old transaction of the application may delay for as long as it runs.
const patience = 10 * time.Second

// answerTimeout is how long readiness waits for Redis to answer.
const answerTimeout = 500 * time.Millisecond

// readiness looks at every part. It may be called at any time, and waits for
// Redis for at most answerTimeout. Last of all it waits for what is to be warmed
// at the start.
func (p *pipeline) readiness(ctx context.Context) readiness {
	r := p.upAndRunning(ctx)
	p.mu.Lock()
	warm := p.up.warm
	p.mu.Unlock()
	if warm != nil && p.roles.worker {
		r.warm(warm.warmups)
	}
	return r
}

// upAndRunning is readiness, but for warm-ups.
func (p *pipeline) upAndRunning(ctx context.Context) readiness {
	p.mu.Lock()
	stage, up := p.stage, p.up
	p.mu.Unlock()
	r := readiness{Details: map[string]any{"stage": stage}}
	wait := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	if failed := p.reloads.details(); failed != nil {
		r.Details["reload"] = failed
	}
	if faulty := p.edges.details(); faulty != nil {
		r.Details["dependencies"] = faulty
	}
	if stage != stageRunning {
		wait("%s", stage)
	}
	if up.reader != nil {
		p.readerReadiness(&r, up, wait)
	}
	if up.worker != nil {
		r.Reasons = append(r.Reasons, up.worker.Unready()...)
		if err := answers(ctx, up.store); err != nil {
			wait("redis does not answer: %v", err)
		}
	}
	if up.consumer != nil && up.consumer.Assigned() == 0 {
		wait("no partition of the log is assigned to this worker")
	}
	r.Ready = len(r.Reasons) == 0
	return r
}

// answers asks every master for its control data. The worker repeats what
// fails until it succeeds and is none the less what it was, so it has no
// opinion about a Redis that is away.
func answers(ctx context.Context, store *coherence.Store) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := store.NodeStats(ctx)
	return err
}

func (p *pipeline) readerReadiness(r *readiness, up parts, wait func(string, ...any)) {
	state := up.reader.State()
	r.Details["reader"] = map[string]any{
		"phase": state.Phase, "era": state.Source.Era, "received": state.Received.String(), "visible": state.V.String(),
		"confirmed": state.Confirmed.String(), "held_commits": state.Held, "slot_lag_bytes": state.Slot.LagBytes,
	}
	if !state.Streaming() {
		reason := string(state.Phase)
		if state.LastError != "" {
			reason += ": " + state.LastError
		}
		wait("slot %s: %s", p.settings.Slot, reason)
	}
	started := p.startRaises(state, up)
	for _, raise := range state.Raises {
		text := fmt.Sprintf("raise because of %s waits for %d transactions that ran when it was asked for", raise.Reason, raise.Running)
		if !started && (!raise.Raised || time.Since(raise.Since) < patience) {
			wait("%s", text)
			continue
		}
		r.Details["raise_due_"+raise.Reason] = text
	}
	if !started && state.Streaming() && len(state.Raises) == 0 {
		wait("the raises of the start are being applied")
	}
	if up.worker != nil && state.Streaming() && state.Source.Era != 0 && up.worker.Visible().LSN == 0 {
		wait("no visibility position has reached the worker yet")
	}
	if state.Source.Era == 0 && state.Streaming() {
		r.Details["era"] = "not known: stamps are not used, and every start forgets everything (" + change.ReasonUnknownEra + ")"
	}
}

// startRaises reports whether the raises of the start are done: in the log and,
// where the worker is beside the reader, applied with their walks. Those that
// come later, while the process runs, do not make it unready.
func (p *pipeline) startRaises(state cdc.State, up parts) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.raised || !state.Streaming() || len(state.Raises) > 0 {
		return p.raised
	}
	log, ok := up.writer.(interface{ Appended() uint64 })
	if !ok {
		p.raised = true
		return true
	}
	if !p.appended {
		p.appended, p.raisesBelow = true, log.Appended()
	}
	switch consumer := up.consumer.(type) {
	case *direct.Log:
		p.raised = consumer.Applied() >= p.raisesBelow
	case *kafka.Consumer:
		// Once they stand in the topic, this worker has to reach them in each of
		// its partitions.
		if up.writer.Durable() < p.raisesBelow {
			return false
		}
		if !p.followed {
			p.followed = true
			consumer.Follow()
		}
		p.raised = consumer.CaughtUp()
	default: // the workers are elsewhere
		p.raised = up.writer.Durable() >= p.raisesBelow
	}
	return p.raised
}

// stageRunning is the stage of a pipeline that is up.
const stageRunning = "running"
