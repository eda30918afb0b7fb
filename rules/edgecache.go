package rules

import (
	"net/url"
	"time"
)

// Defaults and bounds of an edge.
const (
	// EdgeBatchDefault is how many names one request carries. Fastly takes 256
	// at most, Cloudflare 30 on every plan.
	EdgeBatchDefault    = 100
	EdgeBatchTagDefault = 30
	EdgeBatchMax        = 10_000
	EdgeBatchHeaderMax  = 256
	EdgeTimeoutDefault  = 5 * time.Second
	EdgeTimeoutMax      = time.Minute
	EdgeAgainDefault    = 5 * time.Second
	EdgeAgainMin        = 2 * time.Second
	EdgeAgainMax        = 10 * time.Minute
	EdgePendingDefault  = 100_000
)

// EdgeCache is an HTTP endpoint that is told what was forgotten, so that the caches
// behind it forget the responses that were made of it.
type EdgeCache struct {
	// Name is unique; it names metrics, logs, and what is stored for it.
	Name string
	URL  string
	// Format says how the names are written.
	Format EdgeFormat
	// Everything is how the endpoint is told to forget all it has: a URL that
	// is posted to, or a tag that every response carries. Empty: the format has
	// words for it.
	Everything string
	// Classes are those whose keys and raises are told; nil is all. Tags belong
	// to no class and are always told.
	Classes []string
	// Keys and Tags say what responses are labelled with.
	Keys, Tags bool
	// Namespaced leaves the namespace before names.
	Namespaced bool
	// Batch is the most names of one request.
	Batch int
	// Timeout bounds one request.
	Timeout time.Duration
	// Again is how long after a name was told it is told once more.
	Again time.Duration
	// Pending is the most names that wait; beyond it everything is forgotten.
	Pending int
	// Headers are sent with each request as they stand; HeadersEnv are those
	// whose value a variable of the environment holds.
	Headers, HeadersEnv map[string]string
	// SecretEnv is the variable with the secret that signs bodies, TokenEnv the
	// one with a bearer token. Empty: none.
	SecretEnv, TokenEnv string

	pos place
}

// EdgeFormat says how an edge is told.
type EdgeFormat byte

// The formats of an edge.
const (
	// EdgeLethe posts JSON with keys, tags and classes apart.
	EdgeLethe EdgeFormat = iota
	// EdgeSurrogateKey posts a header Surrogate-Key.
	EdgeSurrogateKey
	// EdgeCacheTag posts {"tags": [...]}.
	EdgeCacheTag
)

var edgeFormats = []string{"lethe", "surrogate-key", "cache-tag"}

// String names the format as the file does.
func (f EdgeFormat) String() string { return edgeFormats[f%3] }

// EverythingURL returns Everything if it is a URL.
func (e *EdgeCache) EverythingURL() string {
	if u, err := url.Parse(e.Everything); err == nil && u.Scheme != "" && u.Host != "" {
		return e.Everything
	}
	return ""
}
