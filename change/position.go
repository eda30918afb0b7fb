package change

import (
	"fmt"
	"strconv"
)

// LSN is a byte position in the write-ahead log of one Postgres timeline.
type LSN uint64

// String renders an LSN as Postgres does: two hexadecimal halves, "16/B374D848".
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// MarshalText renders l as String does, in JSON and in logs.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// ParseLSN reads the text form that Postgres prints.
func ParseLSN(s string) (LSN, error) {
	var hi, lo uint32
	if n, err := fmt.Sscanf(s, "%X/%X", &hi, &lo); err != nil || n != 2 {
		return 0, fmt.Errorf("parse LSN %q: want two hexadecimal halves such as 16/B374D848", s)
	}
	return LSN(hi)<<32 | LSN(lo), nil
}

// commitRecordMin is the least size of a commit record in the write-ahead log
// (34 bytes, aligned to 40; 48 seen).
const commitRecordMin = 40

// Bound turns an insert LSN of a primary into the position that every commit
// finished before it was read lies below: such a commit's record is at least
// 40 bytes long, so it started no later than 40 bytes before (PROTOCOL H11).
func Bound(insert LSN) LSN {
	if insert < commitRecordMin {
		return 0
	}
	return insert - commitRecordMin
}

// Position orders commits across the whole life of a cache: LSNs of one
// source are comparable, those of two sources are not, so each source gets an
// era and positions compare by era first. The zero Position is "nothing".
type Position struct {
	Era uint16
	LSN LSN
}

// Covers reports whether a value whose stamp is p contains the commit that
// starts at x: x lies strictly below p.
func (p Position) Covers(x Position) bool { return x.Less(p) }

// Less reports whether p comes before q.
func (p Position) Less(q Position) bool {
	return p.Era < q.Era || p.Era == q.Era && p.LSN < q.LSN
}

// IsZero reports whether p is the zero Position.
func (p Position) IsZero() bool { return p == Position{} }

// Max returns the later of two positions.
func (p Position) Max(q Position) Position {
	if p.Less(q) {
		return q
	}
	return p
}

// positionLen is the width of a position's text: four digits of era, sixteen
// of LSN. Fixed width and lower case, so that scripts may compare the text.
const positionLen = 4 + 16

// String renders a position as era(4 hex)lsn(16 hex), lower case. Positions
// compare as their texts do.
func (p Position) String() string { return string(p.Append(nil)) }

// MarshalText renders p as String does, in JSON and in logs.
func (p Position) MarshalText() ([]byte, error) { return p.Append(nil), nil }

// Append appends the text of p to dst.
func (p Position) Append(dst []byte) []byte {
	const digits = "0123456789abcdef"
	for shift := 12; shift >= 0; shift -= 4 {
		dst = append(dst, digits[p.Era>>shift&15])
	}
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, digits[p.LSN>>shift&15])
	}
	return dst
}

// ParsePosition reads the text that String writes.
func ParsePosition(s string) (Position, error) {
	if len(s) != positionLen {
		return Position{}, fmt.Errorf("parse position %q: want %d hexadecimal digits", s, positionLen)
	}
	era, err := strconv.ParseUint(s[:4], 16, 16)
	if err != nil {
		return Position{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	lsn, err := strconv.ParseUint(s[4:], 16, 64)
	if err != nil {
		return Position{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	return Position{Era: uint16(era), LSN: LSN(lsn)}, nil
}
