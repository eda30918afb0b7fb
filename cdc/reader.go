package cdc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/lethe-cache/lethe/change"
)

// Reader reads a slot into a stream.Writer.
type Reader struct {
	cfg       Config
	log       *appender
	raises    *raiser
	dec       *decoder
	confirmed atomic.Uint64 // the greatest position that the slot was told
	received  atomic.Uint64
	created   bool // the slot was made and its raise not asked for
	broken    bool // a session has found that the slot is of no use any longer
	noCalls   bool // a session has found that no function call gets through

	mu     sync.Mutex
	state  State
	slot   SlotStats
	last   identity
	source change.Source
	cancel context.CancelCauseFunc // of the session
}

// Phase is what a Reader is doing.
type Phase string

// The phases of a Reader.
const (
	PhaseConnecting Phase = "connecting"
	// PhaseCreatingSlot: the server waits for running transactions to end.
	PhaseCreatingSlot Phase = "creating slot"
	// PhaseWaitingForSlot: another process has it.
	PhaseWaitingForSlot Phase = "waiting for slot"
	PhaseStreaming      Phase = "streaming"
	PhaseStopped        Phase = "stopped"
)

// State is what a Reader says of itself at one moment.
type State struct {
	Phase Phase
	// Since is when the phase began.
	Since time.Time
	// LastError is the last failure, empty again once the slot streams.
	LastError string
	// Source is that of the session; zero before the first.
	Source change.Source
	// Received is how far the log has come, V how far it was handed on without
	// a hole, Confirmed what the slot was told.
	Received, V, Confirmed change.LSN
	// Held is how many commits wait for a snapshot that shows them.
	Held int
	// Raises are those that were asked for and are not in the log in full.
	Raises []PendingRaise
	Slot   SlotStats
}

// Streaming reports whether the slot is being read.
func (s State) Streaming() bool { return s.Phase == PhaseStreaming }

const (
	retryMin     = 20 * time.Millisecond
	retryMax     = 2 * time.Second
	slotRetryMax = time.Second
	// healthy is how long a session must have lasted for the next one to be
	// tried without delay.
	healthy = 5 * time.Second
)

// New checks the configuration and makes a Reader. It connects nowhere.
func New(cfg Config) (*Reader, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the reader: %w", err)
	}
	var id [6]byte
	_, _ = rand.Read(id[:]) // never fails
	r := &Reader{
		cfg:    cfg,
		raises: newRaiser(),
		log:    &appender{writer: cfg.Writer, confirm: &confirmer{}, id: fmt.Sprintf("%x", id)},
		state:  State{Phase: PhaseConnecting, Since: time.Now()},
	}
	r.dec = newDecoder(func(content []byte) {
		if took, ok := heartbeatArrived(r.log.id, content, time.Now()); ok {
			cfg.Observer.Heartbeat(took)
		}
	})
	return r, nil
}

// Run reads until ctx ends, and then returns nil; or until something fails that
// trying again does not cure, an *Error. Everything else is tried again without
// limit: refused connections, a restart of Postgres, a slot that another
// process has, a publication that somebody dropped while it was read and that
// its keeper makes again. It is called once.
func (r *Reader) Run(ctx context.Context) error {
	defer r.setPhase(PhaseStopped, nil)
	wait := newBackoff(retryMax)
	for {
		r.setPhase(PhaseConnecting, nil)
		began := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if IsPermanent(err) {
			return err
		}
		// It stays so until the slot is made anew, which may take more than one try.
		r.broken = r.broken || errors.Is(err, errSlotUnusable) || slotUnusable(err)
		if time.Since(began) > healthy {
			wait = newBackoff(retryMax)
		}
		r.setPhase(PhaseConnecting, err)
		delay := wait.NextBackOff()
		if errors.Is(err, errReplay) {
			delay = 0
		}
		r.cfg.Logger.Warn("the replication session ended, another one follows", "slot", r.cfg.Slot, "error", err, "delay", delay)
		if sleep(ctx, delay) != nil {
			return nil
		}
	}
}

func (r *Reader) session(ctx context.Context) error {
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	r.cfg.Logger.Info("streaming", "slot", r.cfg.Slot, "from", s.start, "era", s.source.Era, "timeline", s.source.Timeline)
	return s.stream(ctx)
}

// Raise puts a raise into the log, in order with what is read, as soon as the
// slot streams. With twice another one follows when every transaction is over
// that runs now: for a table that entered the publication, or got columns, call
// it after the ALTER. An empty Cause and Bound are filled in.
//
// It does not block. The channel is closed once all of it is durable behind the
// Writer. What was asked for is lost with the process. A raise like one that
// waits, but for its cause, is joined with that.
func (r *Reader) Raise(raise change.Raise, twice bool) <-chan struct{} {
	return r.raises.ask(raise, twice)
}

// Replay has everything come again that the slot was not confirmed for: the
// session is ended, and the next one begins there.
func (r *Reader) Replay() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		r.cancel(errReplay)
	}
}

// State returns what the Reader is doing. It may be called at any time.
func (r *Reader) State() State {
	r.mu.Lock()
	s := r.state
	s.Source, s.Slot = r.source, r.slot
	r.mu.Unlock()
	s.Received = change.LSN(r.received.Load())
	s.Confirmed = change.LSN(r.confirmed.Load())
	s.V = change.LSN(r.log.v.Load())
	s.Held = int(r.log.held.Load())
	s.Raises = r.raises.state()
	return s
}

func (r *Reader) setCancel(cancel context.CancelCauseFunc) {
	r.mu.Lock()
	r.cancel = cancel
	r.mu.Unlock()
}

func (r *Reader) setPhase(p Phase, err error) {
	r.mu.Lock()
	changed := r.state.Phase != p
	if changed {
		r.state.Phase, r.state.Since = p, time.Now()
	}
	switch {
	case err != nil:
		r.state.LastError = err.Error()
	case p == PhaseStreaming:
		r.state.LastError = ""
	}
	r.mu.Unlock()
	if changed {
		r.cfg.Observer.Phase(p)
	}
}

// newBackoff is a fresh policy: it is stateful, and by default it would give up
// for ever after a quarter of an hour.
func newBackoff(limit time.Duration) *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(retryMin), backoff.WithMultiplier(1.7), backoff.WithRandomizationFactor(0.3),
		backoff.WithMaxInterval(limit), backoff.WithMaxElapsedTime(0),
	)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
