package invalidator

import (
	"context"
	"errors"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/stream"
)

// maintain does what belongs to no partition, or to all: seeds, the heartbeat,
// and looking after the masters. It ends with ctx; errors leave the work to the
// next round.
func (w *Worker) maintain(ctx context.Context) {
	beat := time.NewTicker(w.cfg.HeartbeatEvery)
	defer beat.Stop()
	check := time.NewTicker(w.cfg.CheckEvery)
	defer check.Stop()
	m := maintainer{w: w, pulses: newPulses(w.insertPosition)}
	defer m.pulses.wait.Wait()
	for {
		var err error
		var what string
		select {
		case <-ctx.Done():
			return
		case <-w.sources.kick:
			what, err = "seed", w.seed(ctx)
		case <-beat.C:
			what, err = "heartbeat", m.heartbeat(ctx)
		case <-check.C:
			what, err = "check masters", m.check(ctx)
			if err == nil && w.sources.unseeded() {
				what, err = "seed", w.seed(ctx)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && w.isLost(err) {
			if done, redoErr := w.redo(ctx); done {
				err = nil
			} else {
				what, err = "redo", redoErr
			}
		}
		m.report(ctx, what, err)
	}
}

// maintainer is the state of maintain; its methods are called by one goroutine.
type maintainer struct {
	w *Worker
	// failing are the tasks whose last attempt failed, so that each failure is
	// logged when it begins and when it is over.
	failing map[string]bool
	// seen are visibility positions and when they were seen first, for the lag.
	seen []seenV
	// pulses date what the heartbeat says.
	pulses *pulses
}

type seenV struct {
	v  change.Position
	at time.Time
}

func (m *maintainer) report(ctx context.Context, what string, err error) {
	if m.failing == nil {
		m.failing = map[string]bool{}
	}
	switch {
	case err != nil && !m.failing[what]:
		m.w.log.WarnContext(ctx, "maintenance failed, trying again", "task", what, "error", err)
	case err == nil && m.failing[what]:
		m.w.log.InfoContext(ctx, "maintenance works again", "task", what)
	}
	m.failing[what] = err != nil
}

// check asks every master who it is, whether it forgot the watermarks, and
// remembers the control data for the day when its node forgets it.
func (m *maintainer) check(ctx context.Context) error {
	w := m.w
	if err := w.store.Check(ctx); err != nil {
		return err
	}
	if err := m.watermarksBack(ctx); err != nil {
		return err
	}
	classes := []string{"*"}
	for _, c := range w.cfg.Rules().Plan.Set().Entries {
		classes = append(classes, c.Name)
	}
	control, err := w.store.Control(ctx, classes...)
	if err != nil {
		return err
	}
	if w.nodes.forgotten(control, w.sources.load()) {
		w.log.WarnContext(ctx, "redis has forgotten records that lethe relies on, writing them again", "recorded", control.Source)
		if err := w.restore(ctx); err != nil {
			return err
		}
	} else {
		w.nodes.remember(control)
	}
	w.hook("checked")
	return nil
}

// watermarksBack notices a master that lost its data and kept its run_id
// (FLUSHALL, DEBUG RELOAD of an old file): a watermark that this process has
// written is gone or lower.
func (m *maintainer) watermarksBack(ctx context.Context) error {
	w := m.w
	for _, l := range w.eachLane() {
		before := l.expected.load()
		if before.IsZero() {
			continue
		}
		marks, err := w.store.ReadWatermarks(ctx, l.field)
		if err != nil {
			return err
		}
		var lost []*coherence.NodeLostError
		for _, mark := range marks {
			if !mark.Found || mark.Position.Less(before) {
				lost = append(lost, &coherence.NodeLostError{Node: mark.Node, Old: mark.RunID, New: mark.Current, Cause: causeWatermark})
			}
		}
		if len(lost) > 0 {
			w.wentBack(l, before, lost...)
			return lost[0]
		}
	}
	return nil
}

// heartbeat is sent by the owner of partition 0. It says how far everything is
// done: w is the least watermark of all partitions on all masters, and counts
// only where the master is still the one it was written on.
func (m *maintainer) heartbeat(ctx context.Context) error {
	w := m.w
	v := w.sources.v.load()
	m.lag(v)
	p := w.partitionZero()
	if p == nil {
		return nil
	}
	// A master that does not answer keeps w where it is, and nothing else:
	// clients that read others must go on to hear how far those are.
	askCtx, cancel := context.WithTimeout(ctx, markPatience)
	least, err := w.leastWatermark(askCtx, p.Count())
	cancel()
	// The script echoes the named classes, and strikes off open purges below w:
	// a worker that died before the end of a sweep left them, and whoever
	// applied them again has swept them (H14).
	pulse := m.pulses.next(time.Now(), v)
	if beatErr := w.store.Heartbeat(ctx, coherence.Message{V: v, W: least}, pulse); beatErr != nil {
		return errors.Join(err, beatErr)
	}
	if pulse.Token != "" {
		m.pulses.sent(ctx, w, pulse.Token)
	}
	return err
}

// markPatience bounds how long a heartbeat waits for watermarks.
const markPatience = time.Second

// leastWatermark is w: zero if a partition has none on some master, or one
// that was written under another run_id.
func (w *Worker) leastWatermark(ctx context.Context, partitions int) (least change.Position, err error) {
	for id := range partitions {
		marks, err := w.store.ReadWatermarks(ctx, watermarkField(id, partitions))
		if err != nil {
			return change.Position{}, err
		}
		if len(marks) == 0 {
			return change.Position{}, errors.New("read watermarks: no master")
		}
		for i, mark := range marks {
			if mark.Lost() {
				return change.Position{}, nil
			}
			if id == 0 && i == 0 || mark.Position.Less(least) {
				least = mark.Position
			}
		}
	}
	return least, nil
}

// partitionZero is partition 0 if this process works on it, else nil.
func (w *Worker) partitionZero() stream.Partition {
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range w.lanes {
		if l.p.ID() == 0 {
			return l.p
		}
	}
	return nil
}

// seenKept bounds what lag remembers: a minute of heartbeats, thinned beyond.
const seenKept = 600

// lag sets how long this process's least watermark has stood below v.
func (m *maintainer) lag(v change.Position) {
	now := time.Now()
	if n := len(m.seen); n == 0 || m.seen[n-1].v.Less(v) {
		m.seen = append(m.seen, seenV{v: v, at: now})
	}
	if len(m.seen) > seenKept {
		kept := m.seen[:0]
		for i, s := range m.seen {
			if i%2 == 0 || i == len(m.seen)-1 {
				kept = append(kept, s)
			}
		}
		m.seen = kept
	}
	least, any := change.Position{}, false
	for _, l := range m.w.eachLane() {
		if p := l.written.load(); !any || p.Less(least) {
			least, any = p, true
		}
	}
	n := 0
	for n < len(m.seen) && !least.Less(m.seen[n].v) {
		n++
	}
	m.seen = append(m.seen[:0], m.seen[n:]...)
	lag := 0.0
	if any && len(m.seen) > 0 {
		lag = now.Sub(m.seen[0].at).Seconds()
	}
	m.w.metrics.watermarkLag.Set(lag)
}
