package warmer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/lethe-cache/lethe/rules"
)

// What a loader over HTTP and the application say to each other; docs/warm.md.
const (
	headerTime      = "Lethe-Timestamp"
	headerSignature = "Lethe-Signature"
	// entriesType is the content type of an answer whose values are objects with
	// value, tags and ttl.
	entriesType = "application/vnd.lethe.entries+json"

	answerMax   = 64 << 20
	webTries    = 3
	webBackoff  = 100 * time.Millisecond
	webIdleLife = 30 * time.Second
)

var errWeb = errors.New("the application's answer can not be used")

// web asks applications for values.
type web struct {
	// local dials this machine only, which is what http without TLS is for.
	any, local *http.Client
	env        func(string) string
}

func newWeb() *web {
	client := func(control func(network, address string, c syscall.RawConn) error) *http.Client {
		return &http.Client{
			Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 5 * time.Second, Control: control}).DialContext,
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
				MaxIdleConnsPerHost: 16, IdleConnTimeout: webIdleLife,
				ResponseHeaderTimeout: 0, // the request's own timeout
				ForceAttemptHTTP2:     true,
			},
			// A redirection would take the signed list of keys elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return &web{env: os.Getenv, any: client(nil), local: client(func(_, address string, _ syscall.RawConn) error {
		host, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return fmt.Errorf("%s is not this machine, and the request would go in the clear", address)
		}
		return nil
	})}
}

func (w *web) close() {
	w.any.CloseIdleConnections()
	w.local.CloseIdleConnections()
}

// statusError is an answer that is not 200.
type statusError int

func (e statusError) Error() string {
	return "the application answers " + strconv.Itoa(int(e)) + " " + http.StatusText(int(e))
}

// load asks for the values of keys. What may pass, no answer or one of 429 and
// 5xx, is asked for again a few times.
func (w *web) load(ctx context.Context, h *rules.HTTPLoader, keys []string) (map[string]Value, error) {
	body, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	secret := w.env(h.SecretEnv)
	if secret == "" {
		return nil, fmt.Errorf("load.http: the environment variable %s is not set", h.SecretEnv)
	}
	wait := webBackoff
	for try := 1; ; try++ {
		values, err := w.ask(ctx, h, secret, body)
		var status statusError
		switch {
		case err == nil:
			return values, nil
		case ctx.Err() != nil, try == webTries, errors.Is(err, errWeb),
			errors.As(err, &status) && status != http.StatusTooManyRequests && status < 500:
			return nil, fmt.Errorf("load.http: %w", err)
		}
		if sleep(ctx, wait/2+rand.N(wait)) != nil {
			return nil, fmt.Errorf("load.http: %w", err)
		}
		wait *= 2
	}
}

// ask is one request.
func (w *web) ask(ctx context.Context, h *rules.HTTPLoader, secret string, body []byte) (map[string]Value, error) {
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return nil, bare(err)
	}
	at := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json, "+entriesType)
	request.Header.Set("Cache-Control", "no-store")
	request.Header.Set("User-Agent", applicationName)
	request.Header.Set(headerTime, at)
	request.Header.Set(headerSignature, sign(secret, at, body))
	client := w.any
	if request.URL.Scheme == "http" && !h.Insecure {
		client = w.local
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, bare(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // the connection may be used again
		return nil, statusError(response.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(response.Body, answerMax+1))
	if err != nil {
		return nil, bare(err)
	}
	if len(raw) > answerMax {
		return nil, fmt.Errorf("%w: it has more than %d MB; a smaller \"batch\" asks for less at a time", errWeb, answerMax>>20)
	}
	kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	values, err := parseAnswer(raw, kind == entriesType)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errWeb, err)
	}
	return values, nil
}

// sign is the signature of a request: "sha256=" and the HMAC-SHA256, in hex, of
// the timestamp, a point, and the body.
func sign(secret, at string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(at + "."))
	_, _ = mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// bare is an error of a request without the URL, which may have a token in it.
func bare(err error) error {
	var of *url.Error
	if errors.As(err, &of) {
		return of.Err
	}
	return err
}

// parseAnswer reads {"key": value or null, ...}; with entries each value is an
// object of value, tags and ttl.
func parseAnswer(raw []byte, entries bool) (map[string]Value, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("it is no UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	out := map[string]Value{}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("it is no JSON object")
		}
		if _, twice := out[key]; twice {
			return nil, fmt.Errorf("it has the key %q twice", key)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("the value of %q is no JSON", key)
		}
		v := Value{}
		switch {
		case string(value) == "null":
		case !entries:
			v.JSON = value
		default:
			if v, err = parseEntry(value); err != nil {
				return nil, fmt.Errorf("the entry of %q: %w", key, err)
			}
		}
		out[key] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("it is cut off")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more behind the JSON object")
	}
	return out, nil
}

func parseEntry(raw []byte) (Value, error) {
	var e struct {
		Value json.RawMessage `json:"value"`
		Tags  *[]string       `json:"tags"`
		TTL   string          `json:"ttl"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields() // "tag" for "tags" would be a value that no purge finds
	if err := d.Decode(&e); err != nil {
		return Value{}, errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	var v Value
	if e.Value != nil && string(e.Value) != "null" {
		v.JSON = e.Value
	}
	if e.Tags != nil {
		v.Tags = append([]string{}, *e.Tags...)
	}
	if e.TTL != "" {
		ttl, err := time.ParseDuration(e.TTL)
		if err != nil || ttl <= 0 {
			return Value{}, fmt.Errorf("ttl %q is no duration above zero", e.TTL)
		}
		v.TTL = ttl
	}
	return v, nil
}
