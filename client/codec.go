package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/klauspost/compress/s2"

	"github.com/lethe-cache/lethe/coherence"
)

// Codec turns values into bytes and back. It must be safe for concurrent use.
type Codec interface {
	// ID is stored with each value; a value with another one is a miss. 128 and
	// above belong to applications.
	ID() byte
	Append(dst []byte, v any) ([]byte, error)
	// Decode reads data into v, a pointer, and keeps nothing of data.
	Decode(data []byte, v any) error
}

// JSON is the default Codec, and that of warmed values: encoding/json.
type JSON struct{}

// ID is 'j'.
func (JSON) ID() byte { return byte(coherence.CodecJSON) }

// Append encodes v.
func (JSON) Append(dst []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append(dst, b...), err
}

// Decode decodes into v.
func (JSON) Decode(data []byte, v any) error { return json.Unmarshal(data, v) }

// Validator is implemented by values that can tell whether they make sense. One
// that errs after decoding is a miss.
type Validator interface{ Validate() error }

// compressFrom is the length from which values are compressed.
const compressFrom = 1 << 10

// encode makes the payload of a value.
func (cl *class) encode(v any) (payload []byte, flags coherence.Flags, err error) {
	defer recovered("encode", &err)
	if payload, err = cl.codec.Append(nil, v); err != nil {
		return nil, 0, fmt.Errorf("encode %T: %w", v, err)
	}
	if len(payload) > cl.maxValue {
		return nil, 0, errOversize
	}
	if len(payload) >= compressFrom && !cl.plain {
		if small := s2.Encode(nil, payload); len(small) < len(payload) {
			return small, coherence.FlagCompressed, nil
		}
	}
	return payload, 0, nil
}

var (
	errOversize   = errors.New("the value is too large")
	errOtherCodec = errors.New("the value was written by another codec")
)

// recovered makes an error of a panic in the application's code: most of it runs
// on goroutines of the Client, where nobody else could.
func recovered(what string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s panicked: %v\n%s", what, p, debug.Stack())
	}
}

// decode reads the payload of an entry into v, a pointer.
func (cl *class) decode(h *coherence.Header, payload []byte, v any) (err error) {
	defer recovered("decode", &err)
	if byte(h.Codec) != cl.codec.ID() {
		return errOtherCodec
	}
	if h.Flags&coherence.FlagCompressed != 0 {
		n, err := s2.DecodedLen(payload)
		if err != nil {
			return err
		}
		if n > cl.maxValue {
			return errOversize
		}
		if payload, err = s2.Decode(nil, payload); err != nil {
			return err
		}
	}
	return cl.decodePayload(payload, v)
}

// decodePlain reads a raw value into v, a pointer.
func (cl *class) decodePlain(raw []byte, v any) error {
	if len(raw) > cl.maxValue {
		return errOversize
	}
	return cl.decodePayload(raw, v)
}

func (cl *class) decodePayload(payload []byte, v any) error {
	if err := cl.codec.Decode(payload, v); err != nil {
		return err
	}
	if valid, ok := v.(Validator); ok {
		return valid.Validate()
	}
	return nil
}

// plainSize is the length of a payload before it was compressed: L1 holds what
// it stands for.
func plainSize(h *coherence.Header, payload []byte) int {
	if h.Flags&coherence.FlagCompressed != 0 {
		if n, err := s2.DecodedLen(payload); err == nil {
			return n
		}
	}
	return len(payload)
}
