package audit

import (
	"bytes"
	"encoding/json"
	"math/big"
	"strings"
	"time"
)

// equalRows compares a cached value with its row, both JSON objects. What an
// application stores need not be what the loader returns: fields that only one
// of them has are left out, and names compare without case, as encoding/json
// reads them. comparable is false if they have no field in common.
func equalRows(cached, row []byte) (equal, comparable bool) {
	var c, r map[string]any
	if decode(cached, &c) != nil || decode(row, &r) != nil {
		// Some other form of the value, which nobody can compare.
		same := bytes.Equal(cached, row)
		return same, same
	}
	lower := make(map[string]any, len(c))
	for name, v := range c {
		lower[strings.ToLower(name)] = v
	}
	for name, want := range r {
		got, ok := c[name]
		if !ok {
			if got, ok = lower[strings.ToLower(name)]; !ok {
				continue
			}
		}
		comparable = true
		if !equalValues(got, want) {
			return false, true
		}
	}
	return true, comparable
}

func decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(into)
}

// equalValues compares numbers by value (1.50 is 1.5) and times by instant.
func equalValues(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && equalNumbers(string(a), string(b))
	case string:
		b, ok := b.(string)
		if !ok || a == b {
			return ok
		}
		at, errA := time.Parse(time.RFC3339Nano, a)
		bt, errB := time.Parse(time.RFC3339Nano, b)
		return errA == nil && errB == nil && at.Equal(bt)
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equalValues(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			w, ok := b[k]
			if !ok || !equalValues(v, w) {
				return false
			}
		}
		return true
	}
	return a == b // bool and nil
}

// maxDigits bounds what is compared by value: 1e999999999 is short to write.
const maxDigits = 400

func equalNumbers(a, b string) bool {
	if a == b {
		return true
	}
	for _, s := range []string{a, b} {
		if _, exponent, ok := strings.Cut(strings.ToLower(s), "e"); len(s) > maxDigits || ok && len(strings.TrimLeft(exponent, "+-0")) > 3 {
			return false
		}
	}
	x, okX := new(big.Rat).SetString(a)
	y, okY := new(big.Rat).SetString(b)
	return okX && okY && x.Cmp(y) == 0
}
