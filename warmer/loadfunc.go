package warmer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// LoaderFunc reads values of a class by their keys, which are without the
// namespace; what it leaves out has no row. It may be called by several
// goroutines at a time.
//
// It must read the primary, in a snapshot that begins after the call: neither a
// standby, nor a cache, nor inside a transaction that was open before or that
// writes. That is what makes a fill exact. Lethe takes the ticket before the call,
// so an invalidation that comes later refuses the value; and it stamps the value
// with what was visible on the primary at that moment, which is true of such a
// read and of no other.
type LoaderFunc func(ctx context.Context, keys []string) (map[string]Value, error)

// Value is one loaded value.
type Value struct {
	// JSON is stored as it is; nil is no row.
	JSON []byte
	// Tags are names that it depends on, without the namespace. nil: those of the
	// class, rendered from the members of JSON, which must be an object that has
	// them; a value whose tags can not be known is not stored, since no purge
	// could find it.
	Tags []string
	// TTL replaces the class's; 0 does not.
	TTL time.Duration
}

// The bounds of one value.
const (
	valueTagsMax = 1000
)

var errTags = errors.New("its tags can not be known")

// Loads reports whether values of the class can be read: by SQL, over HTTP or by
// a LoaderFunc.
func (l *Loader) Loads(class *rules.Class) bool {
	return class.Load != nil || l.cfg.Funcs[class.Name] != nil
}

// external is what reads values of the class in place of SQL, nil if nothing
// does.
func (l *Loader) external(class *rules.Class) (LoaderFunc, int) {
	if f := l.cfg.Funcs[class.Name]; f != nil {
		return f, l.cfg.Batch
	}
	if class.Load != nil && class.Load.HTTP != nil {
		return func(ctx context.Context, keys []string) (map[string]Value, error) {
			return l.web.load(ctx, class.Load.HTTP, keys)
		}, class.Load.HTTP.Batch
	}
	return nil, 0
}

// batchOf is how many entries of a class one load asks for.
func (l *Loader) batchOf(class *rules.Class) int {
	if _, n := l.external(class); n > 0 {
		return min(n, l.cfg.Batch)
	}
	return l.cfg.Batch
}

// loadExternal reads the values of entries by their full names.
func (l *Loader) loadExternal(ctx context.Context, f LoaderFunc, most int, set *rules.Set, class *rules.Class, names []string) (Loaded, error) {
	out := Loaded{Values: make([][]byte, len(names)), Tags: make([][]string, len(names)), TTLs: make([]time.Duration, len(names)),
		Refused: make([]string, len(names)), External: true}
	prefix := set.FullName("")
	for start := 0; start < len(names); start += most {
		end := min(start+most, len(names))
		keys := make([]string, 0, end-start)
		of := make(map[string][]int, end-start)
		for i := start; i < end; i++ {
			key := strings.TrimPrefix(string(class.Unversioned([]byte(names[i]))), prefix)
			if of[key] == nil {
				keys = append(keys, key)
			}
			of[key] = append(of[key], i)
		}
		values, err := f(ctx, keys)
		if err != nil {
			return Loaded{}, fmt.Errorf("load entry %q: %w", class.Name, err)
		}
		for key, v := range values {
			for _, i := range of[key] { // none for a value that nobody asked for
				out.take(i, set, class, v)
			}
		}
	}
	return out, nil
}

// take keeps one value, or why it can not be kept.
func (o *Loaded) take(i int, set *rules.Set, class *rules.Class, v Value) {
	if v.JSON == nil {
		return
	}
	var line bytes.Buffer
	if err := json.Compact(&line, v.JSON); err != nil {
		o.Refused[i] = "value"
		return
	}
	tags := v.Tags
	if tags == nil {
		var err error
		if tags, err = tagsOf(class, line.Bytes()); err != nil {
			o.Refused[i] = "tags"
			return
		}
	}
	if len(tags) > valueTagsMax {
		o.Refused[i] = "tags"
		return
	}
	full := make([]string, 0, len(tags))
	for _, t := range tags {
		if t == "" || len(set.FullName(t)) > coherence.MaxNameLen {
			o.Refused[i] = "tags"
			return
		}
		full = append(full, set.FullName(t))
	}
	o.Values[i], o.Tags[i], o.TTLs[i] = line.Bytes(), full, v.TTL
}

// tagsOf renders the tags of the class from the members of a value. A member
// that is null makes no tag, as a NULL column does; one that is not there, or
// that Postgres would write in another way than JSON does, is an error.
func tagsOf(class *rules.Class, value []byte) ([]string, error) {
	if len(class.Tags) == 0 {
		return nil, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(value, &members); err != nil {
		return nil, errTags
	}
	var tags []string
	for _, t := range class.Tags {
		unclear := false
		tag, ok, err := t.Render(func(column string) (any, bool) {
			raw, there := members[column]
			switch {
			case !there:
				unclear = true
			case raw[0] == 'n':
			case raw[0] == '"':
				var s string
				if json.Unmarshal(raw, &s) == nil {
					return s, true
				}
				unclear = true
			case raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9':
				// 1e3 and 1000 are one number and two names.
				if !bytes.ContainsAny(raw, "eE") {
					return string(raw), true
				}
				unclear = true
			default:
				unclear = true
			}
			return nil, true
		})
		if err != nil || unclear {
			return nil, errTags
		}
		if ok {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}
