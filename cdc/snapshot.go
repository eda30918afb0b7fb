package cdc

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Snapshot is what pg_current_snapshot() returns: which transactions were over
// when it was taken. xids are 64 bits wide, the epoch above.
type Snapshot struct {
	// Xmin: every xid below it is over.
	Xmin uint64
	// Xmax: no xid from here on is over.
	Xmax uint64
	// Xip, ascending, are the xids between the two that are still running.
	Xip []uint64
}

// ParseSnapshot reads Postgres's text form, "xmin:xmax:xip,xip".
func ParseSnapshot(s string) (Snapshot, error) {
	first, rest, ok1 := strings.Cut(s, ":")
	second, list, ok2 := strings.Cut(rest, ":")
	if !ok1 || !ok2 {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: want xmin:xmax:xip", s)
	}
	var snap Snapshot
	var err error
	if snap.Xmin, err = strconv.ParseUint(first, 10, 64); err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
	}
	if snap.Xmax, err = strconv.ParseUint(second, 10, 64); err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
	}
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		xid, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
		}
		snap.Xip = append(snap.Xip, xid)
	}
	slices.Sort(snap.Xip)
	return snap, nil
}

// Over reports whether the transaction is over: committed and visible to every
// snapshot taken later on this server, or aborted.
func (s *Snapshot) Over(xid uint64) bool {
	if xid < s.Xmin {
		return true
	}
	if xid >= s.Xmax {
		return false
	}
	_, running := slices.BinarySearch(s.Xip, xid)
	return !running
}

// Widen adds the epoch to a 32-bit xid that was received before the snapshot
// was taken. Live xids lie within 2^31 of each other, so the nearest value is
// the right one. That may be at or above Xmax: Xmax follows the newest xid that
// is *over*, and a commit that is on disk but not yet visible may be newer.
func (s *Snapshot) Widen(xid uint32) uint64 {
	return s.Xmax + uint64(int64(int32(xid-uint32(s.Xmax))))
}
