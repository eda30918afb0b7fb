package cdc

import (
	"slices"

	"github.com/lethe-cache/lethe/change"
)

// roots knows which identity the rows of partitioned tables have.
//
// Rows of a partition are published as the root's, and with them the root's
// replica identity. But what the log carries of an old row is what the
// partition's own identity says, and the two need not agree: under a root with
// REPLICA IDENTITY FULL (which ALTER TABLE does not hand down) and a partition
// with its primary key, pgoutput sends an old row that claims to be whole and
// has NULL for all but the key. Taken at its word it says that the row had no
// category, so that the category's page stays as it is: stale, and not counted.
//
// pgoutput announces a partition right behind its root, before the partition's
// first change, and both again when something about the partition has changed.
// Nothing else puts two relations directly before a change of the first: an
// ordinary table is announced by itself, and those of a TRUNCATE have that
// behind them. So each partition is known before a row of it comes.
type roots struct {
	// announced are the relations of the messages directly before this one.
	announced []*change.Table
	// leaves are the partitions that were seen, by their root.
	leaves map[uint32][]*change.Table
}

func newRoots() roots {
	return roots{leaves: map[uint32][]*change.Table{}}
}

func (r *roots) announce(t *change.Table) { r.announced = append(r.announced, t) }

// forget is called behind each message that is no announcement.
func (r *roots) forget() {
	clear(r.announced)
	r.announced = r.announced[:0]
}

// leafOf looks whether a partition was announced for the change of a relation
// that comes now. It returns the root as it is to be described from now on, nil
// if there is nothing new.
func (r *roots) leafOf(id uint32) *change.Table {
	n := len(r.announced)
	if n < 2 || r.announced[n-2].ID != id || r.announced[n-1].ID == id {
		return nil
	}
	root, leaf := r.announced[n-2], r.announced[n-1]
	r.leaves[id] = append(slices.DeleteFunc(r.leaves[id], func(t *change.Table) bool { return t.ID == leaf.ID }), leaf)
	return r.effective(root)
}

// effective is the description of an announced relation that its rows deserve:
// of a root, the identity that all of the partitions that were seen have.
func (r *roots) effective(t *change.Table) *change.Table {
	leaves := r.leaves[t.ID]
	if len(leaves) == 0 {
		return t
	}
	out := *t
	out.Columns = slices.Clone(t.Columns)
	out.Identity = change.IdentityFull
	for _, leaf := range leaves {
		if leaf.Identity == change.IdentityFull {
			continue
		}
		if out.Identity = t.Identity; out.Identity == change.IdentityFull || out.Identity == change.IdentityNothing {
			out.Identity = change.IdentityIndex
		}
		break
	}
	for i := range out.Columns {
		out.Columns[i].Key = !slices.ContainsFunc(leaves, func(leaf *change.Table) bool {
			at := leaf.ColumnIndex(out.Columns[i].Name)
			return leaf.Identity != change.IdentityFull && (at < 0 || !leaf.Columns[at].Key)
		})
	}
	return &out
}

// whole reports whether NULL in an old row of that kind is a value: in one that
// is of the identity's columns only it stands for what was not logged.
func (r *roots) whole(t *change.Table, kind byte) bool {
	if len(r.leaves) > 0 && len(r.leaves[t.ID]) > 0 {
		return t.Identity == change.IdentityFull
	}
	return kind == 'O'
}
