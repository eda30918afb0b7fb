package rules

import "github.com/lethe-cache/lethe/change"

// side is one of the two rows of a change.
type side byte

const (
	sideOld side = iota
	sideNew
)

// state says what is known of a column's value in one row.
type state byte

const (
	stateText       state = iota
	stateNull             // SQL NULL
	stateNoRow            // the change has no such row
	stateOldUnknown       // the log does not carry the old value
	stateUnknown          // the log does not carry a value that is needed either way
)

// valueOf finds the value of a column in one row of a change. identity says
// that the column belongs to the replica identity, so that an update without an
// old row left it as it was.
func valueOf(c *change.Change, s side, col int, identity bool) ([]byte, state) {
	if s == sideNew {
		return newValue(c, col)
	}
	if c.Op == change.Insert {
		return nil, stateNoRow
	}
	if col < 0 {
		return nil, stateUnknown
	}
	if c.Old != nil {
		switch v := &c.Old[col]; v.Kind {
		case change.Text:
			return v.Bytes, stateText
		case change.Null:
			return nil, stateNull
		}
	} else if identity && c.New != nil {
		return newValue(c, col)
	}
	if c.New != nil && c.New[col].Kind == change.Unchanged {
		// The same large value before and after, and the log has neither: the
		// entry that is there now can not be named.
		return nil, stateUnknown
	}
	return nil, stateOldUnknown
}

func newValue(c *change.Change, col int) ([]byte, state) {
	if c.New == nil {
		return nil, stateNoRow
	}
	if col < 0 {
		return nil, stateUnknown
	}
	switch v := &c.New[col]; v.Kind {
	case change.Text:
		return v.Bytes, stateText
	case change.Null:
		return nil, stateNull
	case change.Unchanged:
		if c.Old != nil && c.Old[col].Kind == change.Text {
			return c.Old[col].Bytes, stateText
		}
	}
	return nil, stateUnknown
}

// changed reports whether an update may have changed a column. An old value
// that the log does not carry counts as changed; a large value that the update
// did not touch is known not to be.
func changed(c *change.Change, col int, identity bool) bool {
	if c.Op != change.Update || c.New == nil || col < 0 {
		return true
	}
	if c.New[col].Kind == change.Unchanged {
		return false
	}
	was, before := valueOf(c, sideOld, col, identity)
	is, after := valueOf(c, sideNew, col, identity)
	if before > stateNull || after > stateNull {
		return true
	}
	return before != after || string(was) != string(is)
}
