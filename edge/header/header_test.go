package header_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/edge/header"
)

func TestLabel(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"product:42":      "product:42",
		"a b":             "a%20b",
		"a,b":             "a%2Cb",
		"a%20b":           "a%2520b",
		"é":               "%C3%A9",
		"\xff\x00\n":      "%FF%00%0A",
		"":                "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"product:42@2":    "product:42@2",
		"path/to/x.y~z-_": "path/to/x.y~z-_",
	} {
		if got := header.Label(name); got != want {
			t.Errorf("Label(%q) = %q, want %q", name, got, want)
		}
	}
}

// No two names have one label, long ones and those that look hashed included.
func TestLabelsDiffer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", header.MaxLabel+1)
	names := []string{long, long + "x", header.Label(long), "", header.Label(""), "a b", "a%20b", strings.Repeat(" ", 100), strings.Repeat(" ", 101), "sha256:"}
	seen := map[string]string{}
	for _, n := range names {
		l := header.Label(n)
		if len(l) > header.MaxLabel || l == "" || strings.ContainsAny(l, " ,") {
			t.Errorf("label of %q is %q", n, l)
		}
		if other, twice := seen[l]; twice && other != n {
			t.Errorf("%q and %q share the label %q", other, n, l)
		}
		seen[l] = n
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	names := []string{"product:42", "a b", header.Class("product")}
	if got, want := header.SurrogateKey(names...), "product:42 a%20b class:product"; got != want {
		t.Errorf("SurrogateKey %q, want %q", got, want)
	}
	if got, want := header.CacheTag(names...), "product:42,a%20b,class:product"; got != want {
		t.Errorf("CacheTag %q, want %q", got, want)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	secret, body := []byte("s"), []byte(`{"keys":[]}`)
	now := strconv.FormatInt(time.Now().Unix(), 10)
	if err := header.Verify(secret, now, header.Sign(secret, now, body), body, 0); err != nil {
		t.Errorf("what was signed is refused: %v", err)
	}
	// From: printf '1700000000.{}' | openssl dgst -sha256 -hmac s
	const known = "sha256=e9232c9945da8456c2dea6b39da7786c07b00bca7a64d5dd1283674713a7b72a"
	if got := header.Sign(secret, "1700000000", []byte("{}")); got != known {
		t.Errorf("signature %s, want %s", got, known)
	}
	old := strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)
	for what, err := range map[string]error{
		"another body":   header.Verify(secret, now, header.Sign(secret, now, body), []byte(`{}`), 0),
		"another secret": header.Verify([]byte("t"), now, header.Sign(secret, now, body), body, 0),
		"another time":   header.Verify(secret, old, header.Sign(secret, now, body), body, 0),
		"an old time":    header.Verify(secret, old, header.Sign(secret, old, body), body, 0),
		"no time":        header.Verify(secret, "", header.Sign(secret, "", body), body, 0),
		"no signature":   header.Verify(secret, now, "", body, 0),
	} {
		if !errors.Is(err, header.ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", what, err)
		}
	}
}
