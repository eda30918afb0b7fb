package rules

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/lethe-cache/lethe/change"
)

// TimedKind says what becomes of a schedule.
type TimedKind byte

// The kinds of a Timed.
const (
	// TimedSet: the targets are due at the time, in place of what was before.
	TimedSet TimedKind = iota
	// TimedDrop: nothing is due any more; the time is NULL or the row is gone.
	TimedDrop
	// TimedDropAll: nothing is due for any row of the rule; TRUNCATE.
	TimedDropAll
	// TimedUnknown: the log does not carry the time or the row's key, so that
	// the table has to be read.
	TimedUnknown
)

// Timed is what a change makes of one schedule: of one row of a rule with At,
// or of a message with "at".
type Timed struct {
	Kind TimedKind
	// Rule is nil for a message. ID is Plan.ScheduleID of it, 0 for a message.
	Rule *Rule
	ID   uint64
	// Key tells the row from the others of its rule, a message from others. It
	// aliases the memory of the Targets.
	Key []byte
	// At is when the targets of a TimedSet are due.
	At time.Time
	// X and Ordinal are the place of the change in the log.
	X       change.Position
	Ordinal uint32

	from, to int // the targets, in Targets.timed
}

// TimedTargets are those of a TimedSet, without what depends on them. They are
// good until Reset.
func (t *Targets) TimedTargets(timed *Timed) []Target { return t.timed[timed.from:timed.to] }

// addTimed moves t.List[from:] to the targets of timed, and appends it.
func (t *Targets) addTimed(from int, timed Timed) {
	timed.from = len(t.timed)
	t.timed = append(t.timed, t.List[from:]...)
	timed.to = len(t.timed)
	t.List = t.List[:from]
	t.Timed = append(t.Timed, timed)
}

// rowKeyMax is the length from which a key is replaced by its hash: it stands
// in an index.
const rowKeyMax = 512

// timed appends what a change makes of the schedule of its row.
//
// A row that is gone loses its schedule whatever `on` and `when` say: there is
// nothing left whose time could come. A row that has another key than before
// counts as one that the rule has not seen, so that the condition is not asked:
// changed("ends_at") is false of it, and the old key's schedule goes.
func (m *Matcher) timed(dst *Targets, tm *tableMatcher, rm *ruleMatcher, c *change.Change, x change.Position) error {
	timed := Timed{Rule: rm.rule, ID: rm.id, X: x, Ordinal: c.Ordinal}
	from := len(dst.List)
	if c.Op == change.Truncate {
		timed.Kind = TimedDropAll
		dst.addTimed(from, timed)
		return nil
	}
	if c.Op == change.Delete {
		m.drop(dst, tm, c.Old, timed)
		return nil
	}
	if !rm.rule.On.Has(c.Op) {
		return nil
	}
	key, known := m.rowKey(dst, tm, c.New, c.Old)
	moved := false
	if c.Op == change.Update && c.Old != nil {
		if old, ok := m.rowKey(dst, tm, c.Old, nil); ok && string(old) != string(key) {
			moved = true
			drop := timed
			drop.Kind, drop.Key = TimedDrop, old
			dst.addTimed(from, drop)
		}
	}
	if !moved && rm.rule.cond != nil && !m.holds(rm.rule, tm, c) {
		return nil
	}
	timed.Key = key
	if !known {
		timed.Kind = TimedUnknown
		dst.addTimed(from, timed)
		return nil
	}
	return m.set(dst, rm, c, timed)
}

// set appends the schedule of a row that is there, or takes it back.
func (m *Matcher) set(dst *Targets, rm *ruleMatcher, c *change.Change, timed Timed) error {
	from := len(dst.List)
	text, st := newValue(c, rm.at)
	switch st {
	case stateText:
		at, never, err := parseTime(text)
		if err != nil {
			return fmt.Errorf("rule %q: at: column %q: %w", rm.rule.Name, rm.rule.At, err)
		}
		if never {
			timed.Kind = TimedDrop
			break
		}
		timed.At = at
		// The row as it will be when the time comes, if nobody changes it.
		now := *c
		now.Op, now.Old = change.Insert, nil
		m.rule(dst, from, rm, &now, timed.X)
		if len(dst.List) == from {
			timed.Kind = TimedDrop // NULL placeholders: there is nothing to invalidate
		}
	case stateNull:
		timed.Kind = TimedDrop
	default:
		timed.Kind = TimedUnknown
	}
	dst.addTimed(from, timed)
	return nil
}

// drop takes back the schedule of a row that is gone.
func (m *Matcher) drop(dst *Targets, tm *tableMatcher, row change.Row, timed Timed) {
	key, ok := m.rowKey(dst, tm, row, nil)
	if !ok {
		return // which row it was is not known: its schedule stays, and forgets too much
	}
	timed.Kind, timed.Key = TimedDrop, key
	dst.addTimed(len(dst.List), timed)
}

func (m *Matcher) holds(r *Rule, tm *tableMatcher, c *change.Change) bool {
	ok, err := m.eval.holds(r.cond, tm, c)
	if err != nil && m.obs.ConditionUnknown != nil {
		m.obs.ConditionUnknown(r, err)
	}
	return ok
}

// Existing appends the schedule that a rule with At has for a row that was
// found in the table: as if it had been inserted, or updated in a column that
// the condition asks for. x is a position below which every commit is in it.
func (m *Matcher) Existing(dst *Targets, r *Rule, t *change.Table, row change.Row, x change.Position) error {
	tm := m.tableMatcher(t)
	for i := range tm.timed {
		rm := &tm.timed[i]
		if rm.rule != r {
			continue
		}
		insert := &change.Change{Op: change.Insert, Table: t, New: row}
		update := &change.Change{Op: change.Update, Table: t, New: row}
		if r.cond != nil && !m.holds(r, tm, insert) && !m.holds(r, tm, update) {
			return nil
		}
		timed := Timed{Rule: r, ID: rm.id, X: x, Ordinal: ^uint32(0)}
		key, ok := m.rowKey(dst, tm, row, nil)
		if !ok {
			return fmt.Errorf("rule %q: a row of %s has no key", r.Name, r.QualifiedTable())
		}
		timed.Key = key
		return m.set(dst, rm, insert, timed)
	}
	return fmt.Errorf("rule %q is none of this plan's for %s", r.Name, t.QualifiedName())
}

// rowKey interns what tells a row from the others of its table: the values of
// the replica identity as a list of JSON, or a hash of it. A table without one
// has only rows that are inserted: any of their values will do. other has the
// values that an update did not touch.
func (m *Matcher) rowKey(dst *Targets, tm *tableMatcher, row, other change.Row) ([]byte, bool) {
	if row == nil {
		return nil, false
	}
	values, sound := make([]*string, 0, 2), true
	var raw []byte
	for i := range tm.table.Columns {
		if tm.keyed && !tm.table.Columns[i].Key {
			continue
		}
		v := &row[i]
		if v.Kind == change.Unchanged && other != nil {
			v = &other[i]
		}
		switch v.Kind {
		case change.Text:
			text := string(v.Bytes)
			values = append(values, &text)
			sound = sound && utf8.ValidString(text)
			raw = append(fmt.Appendf(raw, "%d:", len(text)), text...)
		case change.Null:
			values = append(values, nil)
			raw = append(raw, "-:"...)
		default:
			if tm.keyed {
				return nil, false
			}
		}
	}
	key, err := json.Marshal(values)
	if err != nil {
		return nil, false // text and nothing else: it does not happen
	}
	if !sound || len(key) > rowKeyMax { // JSON makes one text of bytes that are none
		sum := sha256.Sum256(raw)
		key = append([]byte("sha256:"), hex.EncodeToString(sum[:])...)
	}
	return dst.Intern(key), true
}
