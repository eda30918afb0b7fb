package change

import (
	"errors"
	"fmt"
	"hash/crc32"
)

// The wire format of a Record, one Kafka value to a record; docs/wire.md
// describes it byte by byte. Every version starts with the same five bytes, so
// that a reader of any age can tell a record that is too new for it from one
// that is damaged.
const (
	// WireVersion is the version that an Encoder writes and the newest that a
	// Decoder reads.
	WireVersion = 1
	// MaxRecordBytes bounds an encoded record. It is far above what a broker
	// takes by default (1 MB) and below what would hurt a worker that decodes
	// a damaged length.
	MaxRecordBytes = 64 << 20
	// MaxColumns is Postgres's own bound on the columns of a tuple.
	MaxColumns = 1664
	// MaxNameBytes bounds one name (schema, table, column, class, prefix,
	// cause). Postgres's names have at most 63 bytes in a standard build.
	MaxNameBytes = 4096
	// MaxRaiseNames bounds the classes, and the tables, of one Raise.
	MaxRaiseNames = 65536

	wireMagic = "LTHC"

	// Offsets inside the header, which has a fixed length so that V and the
	// counts can be set when they are known: at the end.
	offVersion     = 4
	offFlags       = 5
	offEra         = 6
	offSystemID    = 8
	offTimeline    = 16
	offV           = 20
	offPartition   = 28
	offPartitions  = 32
	offMapVersion  = 36
	offChanges     = 40
	offValues      = 44
	offCommits     = 48
	wireHeaderLen  = 52
	wireTrailerLen = 4

	flagInsertLSN = 1 << 0
	flagsKnown    = flagInsertLSN
)

// The tags of the items behind the header. A change's tag is its Op.
const (
	itemTable    = 'r' // defines the next table and makes it current
	itemUseTable = 'R' // makes a table that was defined before current
	itemCommit   = 'c' // makes a commit current
	itemRaise    = 'x'
)

// The codes of a value; wireText + n is a text of n bytes.
const (
	wireAbsent    = 0
	wireNull      = 1
	wireUnchanged = 2
	wireText      = 3
)

// The bits that say which rows a change carries.
const (
	rowOld = 1 << 0
	rowNew = 1 << 1
)

// minChangeBytes and minCommitBytes are the shortest items of their kind; a
// count in the header that the rest of the record can not hold is refused
// before anything is allocated for it.
const (
	minChangeBytes = 3
	minCommitBytes = 5
)

// ErrFutureVersion is wrapped by the error of a Decoder that meets a record
// written by a newer Lethe. The cure is to update the workers first.
var ErrFutureVersion = errors.New("record version is newer than this program")

// ErrNotRecord is wrapped by the error of a Decoder for bytes that do not
// start as a record does.
var ErrNotRecord = errors.New("not a lethe record")

// IsWire reports whether b begins as an encoded Record of any version does.
func IsWire(b []byte) bool { return len(b) > offVersion && string(b[:offVersion]) == wireMagic }

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// checkEnvelope verifies everything that can be verified before an item is
// read: magic, version, length, checksum.
func checkEnvelope(b []byte) error {
	if !IsWire(b) {
		return fmt.Errorf("decode record of %d bytes: %w", len(b), ErrNotRecord)
	}
	if v := b[offVersion]; v > WireVersion {
		return fmt.Errorf("decode record: version %d, this program reads up to %d: %w", v, WireVersion, ErrFutureVersion)
	} else if v == 0 {
		return fmt.Errorf("decode record: version 0 does not exist")
	}
	if len(b) > MaxRecordBytes {
		return fmt.Errorf("decode record: %d bytes are more than the limit of %d", len(b), MaxRecordBytes)
	}
	if len(b) < wireHeaderLen+wireTrailerLen {
		return fmt.Errorf("decode record: %d bytes are shorter than an empty record", len(b))
	}
	body := b[:len(b)-wireTrailerLen]
	if got, want := crc32.Checksum(body, castagnoli()), be32(b[len(body):]); got != want {
		return fmt.Errorf("decode record: checksum %08x, computed %08x", want, got)
	}
	if f := b[offFlags]; f&^flagsKnown != 0 {
		return fmt.Errorf("decode record: unknown flags %#02x", f&^flagsKnown)
	}
	return nil
}
