// Package header writes the labels of responses that edge caches keep, in the
// form in which Lethe names them when it forgets (docs/edge.md). An origin that
// answers through an edge cache labels each response with everything that it was
// made of:
//
//	w.Header().Set("Surrogate-Key", header.SurrogateKey("product:42", "category:7", header.Class("product")))
//
// The package needs nothing but the standard library.
package header

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxLabel is the length of a label in bytes. A longer one, once encoded, is
// replaced by its hash.
const MaxLabel = 255

// Class is the name of all entries of a class: Lethe names it when it forgets
// the class as a whole.
func Class(name string) string { return "class:" + name }

// Label writes a key or a tag so that it may stand in either header: bytes other
// than letters, digits and -_.~:/@ as %XX, and what is longer than MaxLabel then
// as "sha256:" and the hash in hex of the name itself. Two names never share a
// label, but that Cloudflare takes capital letters for small ones.
func Label(name string) string {
	if labelled(name) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if c := name[i]; plain(c) {
			b.WriteByte(c)
		} else {
			const digits = "0123456789ABCDEF"
			b.WriteString("%")
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		}
	}
	if b.Len() == 0 || b.Len() > MaxLabel || strings.HasPrefix(name, hashed) {
		sum := sha256.Sum256([]byte(name))
		return hashed + hex.EncodeToString(sum[:])
	}
	return b.String()
}

// hashed begins what stands for a longer name; a name that begins so is hashed
// too, or the two could be the same.
const hashed = "sha256:"

func labelled(name string) bool {
	if name == "" || len(name) > MaxLabel || strings.HasPrefix(name, hashed) {
		return false
	}
	for i := 0; i < len(name); i++ {
		if !plain(name[i]) {
			return false
		}
	}
	return true
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~:/@", c) >= 0
}

// SurrogateKey is the value of a response's header Surrogate-Key. Fastly reads
// the first 16 KB of it.
func SurrogateKey(names ...string) string { return join(" ", names) }

// CacheTag is the value of a response's header Cache-Tag. Cloudflare reads the
// first 16 KB of it.
func CacheTag(names ...string) string { return join(",", names) }

func join(separator string, names []string) string {
	labels := make([]string, len(names))
	for i, n := range names {
		labels[i] = Label(n)
	}
	return strings.Join(labels, separator)
}

// The headers that sign the body of a request of Lethe.
const (
	// Timestamp holds the time of signing, in seconds since 1970.
	Timestamp = "Lethe-Timestamp"
	// Signature holds "sha256=" and the HMAC in hex.
	Signature = "Lethe-Signature"
)

// Sign returns the value of Signature: HMAC-SHA256 under the secret of the
// timestamp's text, a full stop and the body.
func Sign(secret []byte, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(timestamp))
	mac.Write([]byte("."))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// ErrSignature is returned by Verify for a request that Lethe did not send, or
// that was changed or repeated on the way.
var ErrSignature = errors.New("signature does not fit")

// Verify checks the two headers of a request against its body. A timestamp that
// is further from now than tolerance, five minutes if it is not above zero, is
// refused. It takes the same time for every wrong signature.
func Verify(secret []byte, timestamp, signature string, body []byte, tolerance time.Duration) error {
	if tolerance <= 0 {
		tolerance = 5 * time.Minute
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: timestamp %q is no number", ErrSignature, timestamp)
	}
	if !hmac.Equal([]byte(Sign(secret, timestamp, body)), []byte(signature)) {
		return ErrSignature
	}
	if age := time.Since(time.Unix(seconds, 0)).Abs(); age > tolerance {
		return fmt.Errorf("%w: signed %s from now", ErrSignature, age.Round(time.Second))
	}
	return nil
}
