package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/lethe-cache/lethe/change"
)

// ErrNotEntry says that a string is not an entry of this version. It is a
// miss; its finder unlinks it.
var ErrNotEntry = errors.New("value is not an entry")

// Version is the first byte of every entry.
const Version = 1

// State is the second byte of an entry.
type State byte

// The states of an entry.
const (
	// StateValue holds a value.
	StateValue State = 'V'
	// StateStale holds a value that was invalidated with action stale: it may
	// be served by those who ask for stale values, never as a hit.
	StateStale State = 'S'
	// StateEmpty holds a ticket and perhaps a lease, no value.
	StateEmpty State = 'E'
)

// Incarnation is what a ticket is made of: eight random bytes.
type Incarnation [8]byte

// Flags are the bits of an entry's flag byte. Bits without a name are kept.
type Flags byte

// The flags of an entry.
const (
	// FlagDegraded marks a value made while something it is made of was
	// missing.
	FlagDegraded Flags = 1 << iota
	// FlagNegative marks the knowledge that there is nothing.
	FlagNegative
	// FlagCompressed marks a payload that was compressed after its codec.
	FlagCompressed
)

// Codec says how a payload is encoded.
type Codec byte

// The codecs that Lethe itself writes; 128 and above belong to applications.
const (
	CodecRaw  Codec = 0
	CodecJSON Codec = 'j'
)

// NameKind says in which way an entry depends on a name.
type NameKind byte

// The kinds of a Name.
const (
	NameTag   NameKind = 't'
	NameKey   NameKind = 'k' // the key of a cached value that this one was made from
	NameClass NameKind = 'c' // the class of such a value, with its generation
)

// Name is something an entry depends on, besides its own key and class.
type Name struct {
	Kind NameKind
	Name string
	// Generation is the one under which a value of a NameClass was made; 0
	// for the other kinds.
	Generation uint64
}

// Lease is the permission to load a value for an entry. It controls the herd,
// never correctness. The zero Lease is none.
type Lease struct {
	Holder [8]byte
	// Until is in Unix microseconds.
	Until int64
}

// Header is everything in an entry but its payload. Its layout is frozen; all
// numbers are big-endian, times are Unix microseconds and 0 is none:
//
//	 0   1  version, 1                   54   8  time of the fill
//	 1   1  state, V S E                 62   8  soft expiry
//	 2   8  incarnation                  70   8  hard expiry (valueEnd)
//	10  16  generation, hex              78   4  measured cost of the load, us
//	26  20  stamp, position              82   4  value version of the class
//	46   8  stale since                  86   1  flags
//	                                     87   1  codec
//	                                     88   8  lease: holder
//	                                     96   8  lease: until
//	                                    104   4  length of the names, n
//	108  n  names: kind (1), length (2), text, and for kind c generation (8)
//	108+n   payload
//
// An empty entry ends after byte 9, or is followed by holder and until of its
// lease (16 bytes). Scripts look at bytes 0 to 9, and where the state is V or S
// at generation, stamp and stale since, which is why these stand at fixed
// offsets and why the first two are lower-case hexadecimal text: it compares
// exactly, which a number beyond 2^53 would not.
type Header struct {
	State       State
	Incarnation Incarnation
	Generation  uint64
	Stamp       change.Position
	// StaleSince is when the first invalidation made the value stale, by the
	// clock of Redis; later ones do not move it.
	StaleSince int64
	Filled     int64
	// SoftExpiry is when a value wants to be loaded again, HardExpiry when it
	// stops being one; 0 is never.
	SoftExpiry, HardExpiry int64
	// LoadCost is how long the load took, in microseconds.
	LoadCost uint32
	// ValueVersion is the class's.
	ValueVersion uint32
	Flags        Flags
	Codec        Codec
	Lease        Lease
	Names        []Name
}

// The offsets of a header; see Header.
const (
	offState       = 1
	offIncarnation = 2
	emptyLen       = 10
	offGeneration  = 10
	offStamp       = 26
	offStaleSince  = 46
	offFilled      = 54
	offSoft        = 62
	offHard        = 70
	offCost        = 78
	offVersion     = 82
	offFlags       = 86
	offCodec       = 87
	offHolder      = 88
	offUntil       = 96
	offNamesLen    = 104
	fixedLen       = 108
	leasedLen      = emptyLen + 16
)

// MaxNameLen is the greatest length of a name in a header, in bytes.
const MaxNameLen = math.MaxUint16

// AppendGeneration appends the fixed-width text of a generation.
func AppendGeneration(dst []byte, g uint64) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, digits[g>>shift&15])
	}
	return dst
}

// ParseGeneration reads the text that AppendGeneration writes.
func ParseGeneration(s string) (uint64, error) {
	if len(s) != 16 || !lowerHex(s) {
		return 0, fmt.Errorf("parse generation %q: want 16 lower-case hexadecimal digits", s)
	}
	return strconv.ParseUint(s, 16, 64)
}

// parseHex reads lower-case hexadecimal digits, 16 at most. Each hit in Redis
// reads 36 of them, so they are not made a string for strconv.
func parseHex(b []byte) (n uint64, ok bool) {
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}

func lowerHex[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Append appends the entry to dst: the header, and for states V and S the
// payload. It errs, leaving dst as it was, if a name is too long or of no
// known kind, or the state is none.
func (h *Header) Append(dst, payload []byte) ([]byte, error) {
	start := len(dst)
	dst = append(dst, Version, byte(h.State))
	dst = append(dst, h.Incarnation[:]...)
	switch h.State {
	case StateEmpty:
		if h.Lease != (Lease{}) {
			dst = append(dst, h.Lease.Holder[:]...)
			dst = binary.BigEndian.AppendUint64(dst, uint64(h.Lease.Until))
		}
		return dst, nil
	case StateValue, StateStale:
	default:
		return dst[:start], fmt.Errorf("encode entry: state %q", byte(h.State))
	}
	dst = AppendGeneration(dst, h.Generation)
	dst = h.Stamp.Append(dst)
	for _, t := range [...]int64{h.StaleSince, h.Filled, h.SoftExpiry, h.HardExpiry} {
		dst = binary.BigEndian.AppendUint64(dst, uint64(t))
	}
	dst = binary.BigEndian.AppendUint32(dst, h.LoadCost)
	dst = binary.BigEndian.AppendUint32(dst, h.ValueVersion)
	dst = append(dst, byte(h.Flags), byte(h.Codec))
	dst = append(dst, h.Lease.Holder[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.Lease.Until))
	dst = append(dst, 0, 0, 0, 0)
	for _, n := range h.Names {
		switch {
		case len(n.Name) > MaxNameLen:
			return dst[:start], fmt.Errorf("encode entry: name of %d bytes, the most is %d", len(n.Name), MaxNameLen)
		case n.Kind != NameTag && n.Kind != NameKey && n.Kind != NameClass:
			return dst[:start], fmt.Errorf("encode entry: name %q of kind %q", n.Name, byte(n.Kind))
		case n.Generation != 0 && n.Kind != NameClass:
			return dst[:start], fmt.Errorf("encode entry: name %q: only a class has a generation", n.Name)
		}
		dst = append(dst, byte(n.Kind))
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(n.Name)))
		dst = append(dst, n.Name...)
		if n.Kind == NameClass {
			dst = binary.BigEndian.AppendUint64(dst, n.Generation)
		}
	}
	names := len(dst) - start - fixedLen
	if names > math.MaxUint32 {
		return dst[:start], fmt.Errorf("encode entry: %d bytes of names", names)
	}
	binary.BigEndian.PutUint32(dst[start+offNamesLen:], uint32(names))
	return append(dst, payload...), nil
}

// Parse reads an entry. The payload aliases b; it is nil for an empty entry.
// The error is ErrNotEntry, wrapped with what is wrong. Appending what was
// parsed gives b again, but for an empty entry whose lease is all zero, which
// gives one without a lease.
func Parse(b []byte) (h Header, payload []byte, err error) {
	if len(b) < emptyLen || b[0] != Version {
		return Header{}, nil, fmt.Errorf("%w: no header of version %d", ErrNotEntry, Version)
	}
	h.State = State(b[offState])
	copy(h.Incarnation[:], b[offIncarnation:])
	switch h.State {
	case StateEmpty:
		switch len(b) {
		case emptyLen:
			return h, nil, nil
		case leasedLen:
			copy(h.Lease.Holder[:], b[emptyLen:])
			h.Lease.Until = int64(binary.BigEndian.Uint64(b[emptyLen+8:]))
			return h, nil, nil
		}
		return Header{}, nil, fmt.Errorf("%w: %d bytes after an empty entry", ErrNotEntry, len(b)-emptyLen)
	case StateValue, StateStale:
	default:
		return Header{}, nil, fmt.Errorf("%w: state %q", ErrNotEntry, b[offState])
	}
	if len(b) < fixedLen {
		return Header{}, nil, fmt.Errorf("%w: cut off after %d bytes", ErrNotEntry, len(b))
	}
	generation, ok := parseHex(b[offGeneration:offStamp])
	era, okEra := parseHex(b[offStamp : offStamp+4])
	lsn, okLSN := parseHex(b[offStamp+4 : offStaleSince])
	if !ok || !okEra || !okLSN {
		return Header{}, nil, fmt.Errorf("%w: generation or stamp is not hexadecimal", ErrNotEntry)
	}
	h.Generation, h.Stamp = generation, change.Position{Era: uint16(era), LSN: change.LSN(lsn)}
	h.StaleSince = int64(binary.BigEndian.Uint64(b[offStaleSince:]))
	h.Filled = int64(binary.BigEndian.Uint64(b[offFilled:]))
	h.SoftExpiry = int64(binary.BigEndian.Uint64(b[offSoft:]))
	h.HardExpiry = int64(binary.BigEndian.Uint64(b[offHard:]))
	h.LoadCost = binary.BigEndian.Uint32(b[offCost:])
	h.ValueVersion = binary.BigEndian.Uint32(b[offVersion:])
	h.Flags, h.Codec = Flags(b[offFlags]), Codec(b[offCodec])
	copy(h.Lease.Holder[:], b[offHolder:])
	h.Lease.Until = int64(binary.BigEndian.Uint64(b[offUntil:]))
	rest := b[fixedLen:]
	n := binary.BigEndian.Uint32(b[offNamesLen:])
	if uint64(n) > uint64(len(rest)) {
		return Header{}, nil, fmt.Errorf("%w: %d bytes of names in %d", ErrNotEntry, n, len(rest))
	}
	if h.Names, err = parseNames(rest[:n]); err != nil {
		return Header{}, nil, err
	}
	return h, rest[n:], nil
}

func parseNames(b []byte) ([]Name, error) {
	var names []Name
	for len(b) > 0 {
		if len(b) < 3 {
			return nil, fmt.Errorf("%w: name cut off", ErrNotEntry)
		}
		n := Name{Kind: NameKind(b[0])}
		size := int(binary.BigEndian.Uint16(b[1:]))
		b = b[3:]
		tail := 0
		switch n.Kind {
		case NameTag, NameKey:
		case NameClass:
			tail = 8
		default:
			return nil, fmt.Errorf("%w: name of kind %q", ErrNotEntry, byte(n.Kind))
		}
		if len(b) < size+tail {
			return nil, fmt.Errorf("%w: name cut off", ErrNotEntry)
		}
		n.Name = string(b[:size])
		if tail > 0 {
			n.Generation = binary.BigEndian.Uint64(b[size:])
		}
		names, b = append(names, n), b[size+tail:]
	}
	return names, nil
}
