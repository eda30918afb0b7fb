package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/lethe-cache/lethe/change"
)

// ErrMessage says that a broadcast can not be read. Its reader treats it as a
// gap.
var ErrMessage = errors.New("malformed broadcast")

// Kind says what a Message asks of its reader.
type Kind byte

// The kinds of a Message. The values are on the wire.
const (
	// KindKeys: drop these entries where their stamp does not cover X.
	KindKeys Kind = 'k'
	// KindPurge: drop the entries of these tags where their stamp does not
	// cover X, and keep the purge until it is swept or X < w.
	KindPurge Kind = 'p'
	// KindSwept: the purge is over; drop as KindPurge does.
	KindSwept Kind = 's'
	// KindRaise: this class has this generation and bound now.
	KindRaise Kind = 'r'
	// KindSource: there is a new source record.
	KindSource Kind = 'o'
	// KindEpoch: forget everything and read the control data again.
	KindEpoch Kind = 'e'
	// KindHeartbeat carries v, w, the last number and id, the digest of the
	// records and the named classes. It has no number of its own.
	KindHeartbeat Kind = 'h'
)

// Message is a broadcast. On the wire it is
//
//	 0  16  number, hex            86  20  v
//	16  16  id                    106  20  w
//	32  16  id of the previous    126  20  bound
//	48  16  generation, hex       146  16  digest
//	64   1  version, '1'          162   4  number of names, big-endian,
//	65   1  kind; upper case: All 166      and each: length (4), text
//	66  20  X
//
// The first 64 bytes are the script's, which numbers and chains; the rest is
// the sender's.
type Message struct {
	Kind Kind
	// Number counts the broadcasts from 1; ID is random, Previous is that of
	// the one before. In a heartbeat Number and ID are the last ones'.
	Number       uint64
	ID, Previous string
	// Generation and Bound are those of a raise.
	Generation uint64
	Bound      change.Position
	X, V, W    change.Position
	// All says that a purge takes the entries that have every one of the tags.
	All bool
	// Names are keys, tags, or classes.
	Names  []string
	Digest string
}

// The fixed part of a message: envelope, version, kind, X, v, w, bound, digest.
const (
	envelopeLen = 64
	messageLen  = envelopeLen + 2 + 4*20 + 16
	noID        = "0000000000000000"
	wireVersion = '1'
)

// kindByte is how All travels: as the upper case of the kind.
func (m *Message) kindByte() byte {
	if m.All {
		return byte(m.Kind) - 'a' + 'A'
	}
	return byte(m.Kind)
}

// body is the part of a message behind the envelope.
func (m *Message) body() []byte {
	size := messageLen - envelopeLen + 4
	for _, n := range m.Names {
		size += 4 + len(n)
	}
	b := make([]byte, 0, size)
	b = append(b, wireVersion, m.kindByte())
	for _, p := range [...]change.Position{m.X, m.V, m.W, m.Bound} {
		b = p.Append(b)
	}
	b = append(b, id16(m.Digest)...)
	return appendNames(b, m.Names)
}

// Append writes the message whole, as the scripts do.
func (m *Message) Append(dst []byte) []byte {
	dst = AppendGeneration(dst, m.Number)
	dst = append(dst, id16(m.ID)...)
	dst = append(dst, id16(m.Previous)...)
	dst = AppendGeneration(dst, m.Generation)
	return append(dst, m.body()...)
}

func id16(id string) string {
	if len(id) != len(noID) {
		return noID
	}
	return id
}

func appendNames(b []byte, names []string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(names)))
	for _, n := range names {
		b = binary.BigEndian.AppendUint32(b, uint32(len(n)))
		b = append(b, n...)
	}
	return b
}

func parseNameList(b []byte) ([]string, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: names cut off", ErrMessage)
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(count)*4 > uint64(len(b)) {
		return nil, fmt.Errorf("%w: %d names in %d bytes", ErrMessage, count, len(b))
	}
	names := make([]string, 0, count)
	for range count {
		if len(b) < 4 {
			return nil, fmt.Errorf("%w: names cut off", ErrMessage)
		}
		n := binary.BigEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-4) || n > math.MaxInt32 {
			return nil, fmt.Errorf("%w: name of %d bytes", ErrMessage, n)
		}
		names, b = append(names, string(b[4:4+n])), b[4+n:]
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", ErrMessage, len(b))
	}
	return names, nil
}

// ParseMessage reads a broadcast. It keeps nothing of b.
func ParseMessage(b []byte) (Message, error) {
	if len(b) < messageLen+4 {
		return Message{}, fmt.Errorf("%w: %d bytes", ErrMessage, len(b))
	}
	if b[envelopeLen] != wireVersion {
		return Message{}, fmt.Errorf("%w: version %q", ErrMessage, b[envelopeLen])
	}
	if !lowerHex(b[:16]) || !lowerHex(b[48:64]) {
		return Message{}, fmt.Errorf("%w: number or generation is not hexadecimal", ErrMessage)
	}
	var m Message
	m.Number, _ = strconv.ParseUint(string(b[:16]), 16, 64)
	m.ID, m.Previous = string(b[16:32]), string(b[32:48])
	m.Generation, _ = strconv.ParseUint(string(b[48:64]), 16, 64)
	m.Kind = Kind(b[envelopeLen+1])
	if m.Kind >= 'A' && m.Kind <= 'Z' {
		m.Kind, m.All = m.Kind-'A'+'a', true
	}
	rest := b[envelopeLen+2:]
	for _, p := range [...]*change.Position{&m.X, &m.V, &m.W, &m.Bound} {
		if !lowerHex(rest[:20]) {
			return Message{}, fmt.Errorf("%w: position %q", ErrMessage, rest[:20])
		}
		*p, _ = change.ParsePosition(string(rest[:20]))
		rest = rest[20:]
	}
	m.Digest = string(rest[:16])
	var err error
	if m.Names, err = parseNameList(rest[16:]); err != nil {
		return Message{}, err
	}
	return m, nil
}
