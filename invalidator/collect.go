package invalidator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// collect turns deliveries into the batch: targets of changes, raises, dead
// letters, and the mark that is due when all of it is applied.
func (l *lane) collect(ctx context.Context, deliveries []stream.Delivery) error {
	l.targets.Reset()
	clear(l.ends)
	l.ends = l.ends[:0]
	clear(l.timed)
	l.timed = l.timed[:0]
	l.batch = batch{raises: l.batch.raises[:0], dead: l.batch.dead[:0], telling: l.w.beyond() != nil}
	if err := l.learn(ctx, deliveries); err != nil {
		return err
	}
	if err := l.follow(ctx); err != nil {
		return err
	}
	if err := l.lookUp(ctx, deliveries); err != nil {
		return err
	}
	defer l.looked.reset() // names are in memory of their own
	for i := range deliveries {
		d := &deliveries[i]
		l.batch.offset = d.Offset
		if l.cut(d) {
			// What was lost is unknown, and so is the partition's share of it.
			l.w.log.ErrorContext(ctx, "records are gone from the log, raising every class", "partition", l.p.ID(), "offset", d.Offset, "another_log", !d.Gap)
			l.batch.reads.everything()
			cause := fmt.Sprintf("log_gap:%d:%d", l.p.ID(), d.Offset)
			if !d.Gap { // each log begins at 0
				cause += ":" + l.floor.String()
			}
			l.raiseAll(change.ReasonLogGap, cause)
		}
		if d.Record == nil {
			l.undecodable(d)
			continue
		}
		if err := l.record(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// cut reports whether what stood before a delivery is gone: because it says so, or
// because it is the first of a log and somebody has worked on this partition
// already, which then was another log. A worker that was killed before it could
// leave its place is the harmless case, and can not be told from that.
func (l *lane) cut(d *stream.Delivery) bool { return d.Gap || d.First && l.applied }

func (l *lane) record(ctx context.Context, d *stream.Delivery) error {
	r := d.Record
	if len(r.Changes) == 0 && len(r.Raises) == 0 && (r.InsertLSN || r.Source == (change.Source{}) && r.V == 0) {
		// The carrier of a gap, a tombstone: it says nothing of the source, so
		// it must not be taken for a reader that does not know its own.
		return nil
	}
	if r.InsertLSN {
		return l.unplaced(ctx, d)
	}
	era, err := l.w.adopt(ctx, r.Source)
	if err != nil {
		return err
	}
	l.suspected(ctx)
	unknown := r.Source.Era == 0
	v := change.Position{Era: era, LSN: r.V}
	if unknown {
		// A position of an unknown source may come twice: neither the
		// watermark nor v may promise anything by it.
		v.LSN = 0
	}
	l.batch.v = l.batch.v.Max(v)
	if r.Partitions <= l.p.Count() {
		l.batch.mark = l.batch.mark.Max(v)
	}
	for i := range r.Raises {
		l.asked(&r.Raises[i], era)
	}
	for i := range r.Changes {
		c := &r.Changes[i]
		x := change.Position{Era: era, LSN: c.Commit.LSN}
		l.change(ctx, d, c, x, !unknown && l.below(c, x))
	}
	l.batch.changes += len(r.Changes)
	return nil
}

// suspected raises everything, once there is a source, for what start found.
func (l *lane) suspected(ctx context.Context) {
	if !l.suspect {
		return
	}
	l.w.log.WarnContext(ctx, "redis holds no source record but other data of ours, raising every class", "partition", l.p.ID())
	l.raiseAll(change.ReasonNodeLost, "node_lost:"+lostAtStart)
	l.suspect = false
}

// unplaced applies a record whose log does not name the start of its commits:
// the insert LSN of the primary, read now that the record is here, is above all
// of them. It says nothing of v, and nothing of it counts as applied before.
//
// Its era is the recorded one, for InsertLSN errs for any other server. Without
// a record there is none that anybody could vouch for.
func (l *lane) unplaced(ctx context.Context, d *stream.Delivery) error {
	var x change.Position
	if l.w.unstamped() {
		era, err := l.w.adopt(ctx, change.Source{})
		if err != nil {
			return err
		}
		x.Era = era
	} else if err := l.w.retry(ctx, "read insert LSN", func(ctx context.Context) (err error) {
		x, err = l.w.insertPosition(ctx)
		return err
	}); err != nil {
		return err
	}
	l.suspected(ctx)
	for i := range d.Record.Raises {
		l.asked(&d.Record.Raises[i], x.Era)
	}
	for i := range d.Record.Changes {
		c := &d.Record.Changes[i]
		// The number inside of its own transaction says nothing beside another's
		// at the same x; of those that are alike the one that comes later counts.
		c.Ordinal = 0
		l.change(ctx, d, c, x, false)
	}
	l.batch.changes += len(d.Record.Changes)
	return nil
}

// below reports whether the change was applied before: it lies below the
// watermark that every master holds. Only commits do; a non-transactional
// message has a position of its own, about which v promises nothing.
func (l *lane) below(c *change.Change, x change.Position) bool {
	return c.Commit.XID != 0 && x.Era == l.floor.Era && x.Less(l.floor)
}

// change appends the targets of one change.
func (l *lane) change(ctx context.Context, d *stream.Delivery, c *change.Change, x change.Position, below bool) {
	l.handles.change(c)
	from := len(l.targets.List)
	l.looked.idle = below && !l.batch.telling
	err := l.match(c, x)
	if err == nil {
		err = l.schedulable()
	}
	if err != nil {
		l.targets.List = l.targets.List[:from]
		var lookup *rules.LookupError
		if below || !errors.As(err, &lookup) || l.schedulable() != nil {
			l.targets.Timed = l.targets.Timed[:len(l.timed)]
		}
		for len(l.timed) < len(l.targets.Timed) { // a raise now is not one at their time
			l.timed = append(l.timed, c)
		}
		l.poison(ctx, d, c, x, err)
		return
	}
	if below {
		defer func() { l.targets.Timed = l.targets.Timed[:len(l.timed)] }()
		for i := from; i < len(l.targets.List); i++ {
			l.handles.outcome(l.handles.rule(l.targets.List[i].Rule), OutcomeBelowWatermark)
		}
		if l.batch.telling {
			// Redis has done it. Whether Beyond knows is not told by the
			// watermark but by the acknowledgement, which did not come.
			// What was due at once is among it; the rest does no harm.
			for i := len(l.timed); i < len(l.targets.Timed); i++ {
				l.targets.List = append(l.targets.List, l.targets.TimedTargets(&l.targets.Timed[i])...)
			}
			l.walker.Cascade(&l.targets, from, c)
			l.batch.forgot.targets(l.targets.List[from:])
		}
		l.targets.List = l.targets.List[:from]
		return
	}
	for len(l.timed) < len(l.targets.Timed) {
		l.timed = append(l.timed, c)
	}
	l.cascade(ctx, from, c, x)
	if len(l.targets.List) == from {
		return
	}
	l.ends = append(l.ends, changeEnd{end: len(l.targets.List), commit: c.Commit.Time, table: c.Table, op: c.Op})
}

// cascade follows the dependencies of the targets from on.
func (l *lane) cascade(ctx context.Context, from int, c *change.Change, x change.Position) {
	report := l.walker.Cascade(&l.targets, from, c)
	if report.DepthExceeded {
		l.w.metrics.cascades.WithLabelValues("depth").Inc()
	}
	if report.FanOutExceeded {
		l.w.metrics.cascades.WithLabelValues("fan_out").Inc()
	}
	if report.Raised > 0 {
		l.w.log.WarnContext(ctx, "cascade exceeds its limits, raising the classes not reached",
			"table", tableName(c), "x", x, "depth", report.DepthExceeded, "fan_out", report.FanOutExceeded, "classes", report.Raised)
	}
}

// match is Matcher.Match that takes a panic for an error: one rule must not be
// able to stop the stream.
func (l *lane) match(c *change.Change, x change.Position) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("match panicked: %v\n%s", p, debug.Stack())
		}
	}()
	return l.matcher.Match(&l.targets, c, x)
}

// undecodable makes a dead letter of a record that can not be read. What it
// held is unknown, so everything is raised.
func (l *lane) undecodable(d *stream.Delivery) {
	text := "record is empty"
	if d.Err != nil {
		text = d.Err.Error()
	}
	l.batch.dead = append(l.batch.dead, stream.DeadLetter{
		Reason: "decode", Err: text, Partition: l.p.ID(), Offset: d.Offset, Payload: slices.Clone(d.Raw),
	})
	l.batch.reads.everything()
	l.raiseAll(change.ReasonDeadLetter, fmt.Sprintf("dead_letter:%d:%d", l.p.ID(), d.Offset))
}

// poison makes a dead letter of a change whose rules failed, and raises what
// the rules of its table can touch.
func (l *lane) poison(ctx context.Context, d *stream.Delivery, c *change.Change, x change.Position, err error) {
	letter := stream.DeadLetter{
		Reason: "rule", Err: err.Error(), Partition: l.p.ID(), Offset: d.Offset, Position: x, Table: tableName(c), Payload: payloadOf(c),
	}
	var lookup *rules.LookupError
	if errors.As(err, &lookup) {
		letter.Reason = "lookup"
	}
	classes := []string{"*"}
	if c.Op == change.Message {
		letter.Reason = "message"
	} else if touched, all := l.rules.Plan.ClassesOfTable(letter.Table); !all && len(touched) > 0 {
		classes = classNames(touched)
	}
	// What it would have scheduled is read from the table.
	if c.Op != change.Message {
		l.batch.reads.table(letter.Table)
	}
	l.batch.dead = append(l.batch.dead, letter)
	l.raiseForLetter(c, x, classes)
	l.w.log.ErrorContext(ctx, "change can not be processed, raising the classes it may touch",
		"table", letter.Table, "x", x, "classes", classes, "error", err)
}

// raiseForLetter asks for the raise that goes with a dead letter: one of a batch
// for all that touch the same, as a statement that is wrong fails every change.
func (l *lane) raiseForLetter(c *change.Change, x change.Position, classes []string) {
	for i := range l.batch.raises {
		if r := &l.batch.raises[i]; r.Reason == change.ReasonDeadLetter && !r.X.IsZero() && slices.Equal(r.Classes, classes) {
			r.X = r.X.Max(x)
			return
		}
	}
	l.batch.raises = append(l.batch.raises, coherence.RaiseRequest{
		Cause:  l.w.uniqueCause(fmt.Sprintf("dead_letter:%s:%d", x, c.Ordinal)),
		Reason: change.ReasonDeadLetter, Classes: classes, X: x,
	})
}

// raiseAll asks for a raise of every class, by a cause of its own.
func (l *lane) raiseAll(reason, what string) {
	l.batch.raises = append(l.batch.raises, coherence.RaiseRequest{
		Cause: l.w.uniqueCause(what), Reason: reason, Classes: []string{"*"},
	})
}

// asked appends a raise that the reader asks for.
func (l *lane) asked(r *change.Raise, era uint16) {
	// Changes went by unseen, and what they would have scheduled with them.
	if len(r.Classes) > 0 {
		l.batch.reads.everything()
	}
	classes := slices.Clone(r.Classes)
	for _, table := range r.Tables {
		l.batch.reads.table(table)
		touched, all := l.rules.Plan.ClassesOfTable(table)
		if all {
			classes = append(classes, "*")
		}
		classes = append(classes, classNames(touched)...)
	}
	if slices.Contains(classes, "*") {
		classes = []string{"*"}
	}
	slices.Sort(classes)
	classes = slices.Compact(classes)
	if len(classes) == 0 {
		return // tables that no rule knows any more
	}
	request := coherence.RaiseRequest{Cause: r.Cause, Reason: r.Reason, Classes: classes, X: r.X, Bound: r.Bound}
	for _, p := range []*change.Position{&request.X, &request.Bound} {
		if !p.IsZero() && p.Era == 0 {
			p.Era = era
		}
	}
	l.batch.raises = append(l.batch.raises, request)
}

func classNames(classes []*rules.Class) []string {
	names := make([]string, len(classes))
	for i, c := range classes {
		names[i] = c.Name
	}
	return names
}

func tableName(c *change.Change) string {
	if c.Table == nil {
		return ""
	}
	return c.Table.QualifiedName()
}

// payloadOf renders a change for people to look at.
func payloadOf(c *change.Change) []byte {
	if c.Op == change.Message {
		return slices.Clone(c.Content)
	}
	row := func(r change.Row) map[string]*string {
		if r == nil {
			return nil
		}
		out := make(map[string]*string, len(r))
		for i, v := range r {
			if i >= len(c.Table.Columns) {
				break
			}
			switch v.Kind {
			case change.Text:
				text := string(v.Bytes)
				out[c.Table.Columns[i].Name] = &text
			case change.Null:
				out[c.Table.Columns[i].Name] = nil
			}
		}
		return out
	}
	payload, err := json.Marshal(struct {
		Op  string             `json:"op"`
		XID uint64             `json:"xid"`
		Old map[string]*string `json:"old,omitempty"`
		New map[string]*string `json:"new,omitempty"`
	}{c.Op.String(), c.Commit.XID, row(c.Old), row(c.New)})
	if err != nil {
		return []byte(err.Error()) // strings and nothing else: it does not happen
	}
	return payload
}
