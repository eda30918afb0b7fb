package edge

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/edge/header"
	"github.com/lethe-cache/lethe/rules"
)

// name is one thing to forget, as an endpoint writes it.
type name struct {
	kind byte // 'k', 't', 'c'
	text string
}

// delivery is some rows of the outbox, told together.
type delivery struct {
	// ids are all rows; first those that were never told, second the others.
	ids, first, second []int64

	everything bool
	names      []name
	position   string
	requests   int
}

// deliveryOf merges rows. Whoever forgets everything forgets the names of the
// other rows too.
func deliveryOf(e *rules.EdgeCache, rows []row) *delivery {
	d := &delivery{}
	for i := range rows {
		r := &rows[i]
		d.ids = append(d.ids, r.id)
		if r.told == 0 {
			d.first = append(d.first, r.id)
		} else {
			d.second = append(d.second, r.id)
		}
		d.everything = d.everything || r.everything
		d.position = max(d.position, r.position)
	}
	slices.Sort(d.ids)
	if d.everything {
		return d
	}
	seen := map[name]struct{}{}
	add := func(kind byte, text string) {
		n := name{kind, text}
		if e.Format != rules.EdgeLethe {
			n = name{'t', header.Label(text)} // one word for all of them
		}
		if _, twice := seen[n]; !twice {
			seen[n] = struct{}{}
			d.names = append(d.names, n)
		}
	}
	for i := range rows {
		for _, k := range rows[i].keys {
			add('k', string(k))
		}
		for _, t := range rows[i].tags {
			add('t', string(t))
		}
		for _, c := range rows[i].classes {
			if e.Format != rules.EdgeLethe {
				c = header.Class(c)
			}
			add('c', c)
		}
	}
	return d
}

// headerMost bounds what the names of one request take in bytes: servers refuse
// headers that are much longer.
const headerMost = 8 << 10

// batches cuts names as an endpoint takes them.
func batches(e *rules.EdgeCache, names []name) [][]name {
	var out [][]name
	from, size := 0, 0
	for i, n := range names {
		size += len(n.text) + 1
		if i > from && (i-from >= e.Batch || e.Format == rules.EdgeSurrogateKey && size > headerMost) {
			out = append(out, names[from:i])
			from, size = i, len(n.text)+1
		}
	}
	if from < len(names) {
		out = append(out, names[from:])
	}
	return out
}

// message is the body of a request in format lethe (docs/edge.md).
type message struct {
	ID         string   `json:"id"`
	X          string   `json:"x,omitempty"`
	Namespace  string   `json:"namespace"`
	Keys       []string `json:"keys"`
	Tags       []string `json:"tags"`
	Classes    []string `json:"classes"`
	Everything bool     `json:"everything,omitempty"`
}

// request is what is posted for some names, or for everything.
type request struct {
	url    string
	header http.Header
	body   []byte
}

// write makes the request that tells names; none of them is everything.
func write(e *rules.EdgeCache, c credentials, namespace, id, position string, names []name) request {
	r := request{url: e.URL, header: c.header.Clone()}
	all := len(names) == 0
	if all && e.Everything != "" {
		if u := e.EverythingURL(); u != "" {
			r.url = u
		} else {
			names = []name{{'t', e.Everything}}
		}
	}
	switch e.Format {
	case rules.EdgeSurrogateKey:
		if len(names) > 0 {
			r.header.Set("Surrogate-Key", join(names))
		}
	case rules.EdgeCacheTag:
		if len(names) == 0 {
			r.body = []byte(`{"purge_everything":true}`)
		} else {
			r.body = encode(map[string][]string{"tags": texts(names, 't')})
		}
	default:
		r.body = encode(message{ID: id, X: position, Namespace: namespace, Everything: all,
			Keys: texts(names, 'k'), Tags: texts(names, 't'), Classes: texts(names, 'c')})
	}
	if r.body != nil {
		r.header.Set("Content-Type", "application/json")
	}
	return r
}

// sign adds the signature, which is of the time of sending.
func (r *request) sign(secret []byte, now time.Time) {
	if len(secret) == 0 {
		return
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	r.header.Set(header.Timestamp, stamp)
	r.header.Set(header.Signature, header.Sign(secret, stamp, r.body))
}

func join(names []name) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(n.text)
	}
	return b.String()
}

func texts(names []name, kind byte) []string {
	out := []string{}
	for _, n := range names {
		if n.kind == kind {
			out = append(out, n.text)
		}
	}
	return out
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("edge: texts and lists of them are JSON: " + err.Error())
	}
	return b
}
