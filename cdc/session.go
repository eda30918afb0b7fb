package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
)

// session is one life of the three connections.
type session struct {
	reader *Reader
	gate   *pgx.Conn
	keeper *pgx.Conn
	wire   *wire
	id     identity
	source change.Source
	start  change.LSN // where the slot stood
}

// closeTimeout bounds the farewells of a session.
const closeTimeout = 2 * time.Second

// open connects, checks that all three connections lead to one primary, and
// takes the slot. On an error everything is closed again.
func (r *Reader) open(ctx context.Context) (s *session, err error) {
	s = &session{reader: r}
	var repl *pgconn.PgConn
	defer func() {
		if err == nil {
			return
		}
		if repl != nil && s.wire == nil {
			closeConn(repl.Close)
		}
		s.close()
		s = nil
	}()
	if s.gate, err = r.cfg.dialOrdinary(ctx); err != nil {
		return s, err
	}
	if s.keeper, err = r.cfg.dialOrdinary(ctx); err != nil {
		return s, err
	}
	if repl, err = r.cfg.dialReplication(ctx); err != nil {
		return s, err
	}
	if err := s.identify(ctx, repl); err != nil {
		return s, err
	}
	if err := r.checkPublications(ctx, s.keeper); err != nil {
		return s, err
	}
	created, err := s.ensureSlot(ctx)
	if err != nil {
		return s, err
	}
	r.created = r.created || created // until its raise is asked for
	if s.wire, err = takeWire(ctx, repl); err != nil {
		return s, err
	}
	if err := s.takeSlot(ctx); err != nil {
		return s, err
	}
	return s, s.openSource(ctx)
}

// identify checks who is there.
func (s *session) identify(ctx context.Context, repl *pgconn.PgConn) error {
	var err error
	if s.id, err = readIdentity(ctx, repl); err != nil {
		return err
	}
	if err := s.id.check(); err != nil {
		return err
	}
	system, timeline, err := identifySystem(ctx, repl)
	if err != nil {
		return err
	}
	if system != s.id.systemID || timeline != s.id.timeline {
		return fmt.Errorf("the server's timeline changed while it was asked (%d, then %d)", s.id.timeline, timeline)
	}
	for _, c := range []*pgx.Conn{s.gate, s.keeper} {
		id, err := readIdentity(ctx, c.PgConn())
		if err != nil {
			return err
		}
		if !s.id.sameRun(id) {
			return errors.New("connections to LETHE_POSTGRES_URL lead to different servers (it must name one primary, not a balancer)")
		}
	}
	if err := s.id.follows(s.reader.last); err != nil {
		return err
	}
	return nil
}

// takeSlot starts the stream. While another walsender has the slot (ours of
// before, if the server has not noticed yet, or another process) it is asked
// for again and again, soon at first: a restart shall be quick.
func (s *session) takeSlot(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.wire.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	wait := newBackoff(slotRetryMax)
	for {
		if err := s.wire.conn.SetReadDeadline(time.Now().Add(s.reader.cfg.ReceiveTimeout)); err != nil {
			return fmt.Errorf("set read deadline: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := s.wire.startReplication(s.reader.startSQL())
		if sqlState(err) != codeObjectInUse {
			return Classify("use slot "+s.reader.cfg.Slot, err)
		}
		s.reader.setPhase(PhaseWaitingForSlot, err)
		if err := sleep(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// openSource asks the tracker which era this is and what is due. It comes after
// the slot was taken: of several processes the one that reads decides.
func (s *session) openSource(ctx context.Context) error {
	r := s.reader
	s.source = change.Source{SystemID: s.id.systemID, Timeline: s.id.timeline}
	var due []source.Due
	if t := r.cfg.Source; t != nil {
		var hints source.Hints
		if r.cfg.Hints != nil {
			var err error
			if hints, err = r.cfg.Hints(ctx); err != nil {
				return fmt.Errorf("ask what is remembered of the source: %w", err)
			}
		}
		src, opened, err := t.Open(ctx, s.keeper, hints)
		if err != nil {
			return openError(err)
		}
		_, checked, err := t.CheckSlot(ctx, s.keeper)
		if err != nil {
			return Classify("check the slot", err)
		}
		s.source = src
		due = append(opened, checked...)
		if r.created && len(checked) == 0 {
			due = append(due, t.SlotLost())
		}
	}
	var err error
	if s.start, err = r.confirmedFlush(ctx, s.keeper); err != nil {
		return err
	}
	same := s.source == r.source && r.last.sameRun(s.id)
	// A slot above what was ever confirmed has been moved, or made anew, by
	// somebody else: what lies between never came.
	moved := same && s.start > change.LSN(r.confirmed.Load())
	switch {
	case r.cfg.Source == nil && (r.created || moved):
		due = append(due, source.Due{Again: true, Raise: change.Raise{
			Cause: r.log.cause(change.ReasonSlotLost), Reason: change.ReasonSlotLost, Classes: []string{"*"},
		}})
	case r.cfg.Source != nil && s.source.Era == 0 && moved && !r.created && len(due) == 0:
		due = append(due, r.cfg.Source.SlotLost()) // the tracker has nothing stored to compare with
	}
	if !same {
		r.log.confirm.restart(s.start)
		r.confirmed.Store(uint64(s.start))
	}
	r.raises.session(due, same)
	r.created = false
	r.mu.Lock()
	r.last, r.source = s.id, s.source
	r.mu.Unlock()
	return nil
}

// openError judges what the tracker says of the server.
func openError(err error) error {
	var refused *source.RefusedError
	if errors.As(err, &refused) && refused.Permanent() {
		return &Error{Op: "open the source", Err: err}
	}
	return Classify("open the source", err)
}

// stream runs the session until something ends it.
func (s *session) stream(ctx context.Context) error {
	r := s.reader
	runCtx := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.setCancel(cancel)
	defer r.setCancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = s.wire.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	segments := make(chan *segment, 2)
	recv := &receiver{
		wire: s.wire, dec: r.dec, out: segments,
		interval: r.cfg.StatusInterval, silence: r.cfg.ReceiveTimeout,
		maxChanges: segmentChanges, maxSize: segmentSize,
		sent: s.start,
	}
	if t := s.id.senderTimeout / 3; t > 0 {
		recv.interval = min(recv.interval, t)
	}
	recv.received.Store(uint64(s.start))
	r.received.Store(uint64(s.start))
	k := &keeper{
		cfg: &r.cfg, conn: s.keeper, log: r.log, raises: r.raises, version: s.id.version, logger: r.cfg.Logger,
		received: func() change.LSN {
			lsn := recv.received.Load()
			r.received.Store(lsn)
			return change.LSN(lsn)
		},
		onStats: func(st SlotStats) {
			r.mu.Lock()
			r.slot = st
			r.mu.Unlock()
			r.cfg.Observer.Slot(st)
		},
	}
	k.stored.Store(uint64(s.start))
	recv.confirmed = func() change.LSN {
		lsn := change.LSN(k.stored.Load())
		if r.cfg.Source == nil {
			lsn = r.log.position()
		}
		if uint64(lsn) > r.confirmed.Load() {
			r.confirmed.Store(uint64(lsn))
		}
		return lsn
	}
	asked := &pgPrimary{conn: s.gate, refused: r.noCalls}
	defer asked.interruptible(ctx)()
	runner := &gateRunner{
		gate: &gate{maxBytes: r.cfg.HeldBytes, maxRows: r.cfg.HeldRows, maxForgotten: r.cfg.HeldForgotten, v: s.start},
		in:   segments, primary: asked, source: s.source, log: r.log, raises: r.raises, kick: r.raises.kick,
		markInterval: r.cfg.MarkInterval, dead: r.cfg.DeadLetters, observer: r.cfg.Observer, logger: r.cfg.Logger, nap: nap,
	}
	r.dec.reset()
	r.setPhase(PhaseStreaming, nil)

	var wg sync.WaitGroup
	for _, part := range []func() error{
		func() error { return recv.run(ctx) },
		func() error { return runner.run(ctx, runCtx) },
		func() error { return k.run(ctx) },
	} {
		wg.Go(func() {
			if err := part(); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	r.noCalls = asked.withoutCalls()
	if runCtx.Err() != nil {
		s.farewell(k, recv)
	}
	return context.Cause(ctx)
}

// farewell confirms what is durable, so that the next start repeats less.
func (s *session) farewell(k *keeper, recv *receiver) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if !s.keeper.IsClosed() {
		_ = k.store(ctx, true) // what is not confirmed comes again, and does no harm
	}
	s.wire.patience = closeTimeout
	_ = recv.status(false)
	_ = s.wire.write([]byte{'c', 0, 0, 0, 4})
}

// close closes what is open. The slot is free as soon as the server notices.
func (s *session) close() {
	if s.wire != nil {
		s.wire.patience = closeTimeout
		_ = s.wire.write([]byte{'X', 0, 0, 0, 4})
		_ = s.wire.conn.Close()
	}
	for _, c := range []*pgx.Conn{s.gate, s.keeper} {
		if c != nil {
			closeConn(c.Close)
		}
	}
}

func closeConn(closer func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = closer(ctx) // nothing depends on how the server takes it
}
