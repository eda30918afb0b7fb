package keyscan

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"
)

// LargeBytes is the size from which a value is told of.
const LargeBytes = 100 << 10

// literalsMax is how many different texts may stand in one place of a name
// before they are taken for values.
const literalsMax = 20

// The placeholders of a pattern.
const (
	Number = "{number}"
	UUID   = "{uuid}"
	Hex    = "{hex}"
	Date   = "{date}"
	Text   = "{text}"
)

// Pattern is the keys of one form. Counts and sizes are of the whole cache, by
// the sample.
type Pattern struct {
	// Segments are the parts between colons: text or one of the placeholders.
	Segments []string
	// Keys, NoTTL and Large are numbers of keys; Bytes is their size.
	Keys, NoTTL, Large, Bytes int64
	// Sampled is how many of them were looked at.
	Sampled int
	// TTLMin, TTLMedian and TTLMax are of what is left of those that have an
	// end; 0 if none has. IdleMedian is -1 if the server does not know.
	TTLMin, TTLMedian, TTLMax, IdleMedian time.Duration
	// Largest is the name of the largest value, LargestBytes its size.
	Largest      string
	LargestBytes int64
	// Types are those of the values, sorted.
	Types []string
	// Collides are the other patterns that could produce a key of this one.
	Collides []string
}

// String is the pattern as a name.
func (p *Pattern) String() string { return strings.Join(p.Segments, ":") }

// Placeholders is how many of the segments are values.
func (p *Pattern) Placeholders() int {
	n := 0
	for _, s := range p.Segments {
		if IsPlaceholder(s) {
			n++
		}
	}
	return n
}

// IsPlaceholder reports whether a segment stands for values.
func IsPlaceholder(segment string) bool {
	switch segment {
	case Number, UUID, Hex, Date, Text:
		return true
	}
	return false
}

var (
	numberForm = regexp.MustCompile(`^-?\d+$`)
	uuidForm   = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
	hexForm    = regexp.MustCompile(`^[0-9a-fA-F]{12,}$`)
	dateForm   = regexp.MustCompile(`^(19|20)\d\d-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])$`)
)

// kind is the placeholder that a segment looks like a value of, "" for none.
func kind(segment string) string {
	switch {
	case dateForm.MatchString(segment):
		return Date
	case numberForm.MatchString(segment):
		return Number
	case uuidForm.MatchString(segment):
		return UUID
	case hexForm.MatchString(segment):
		return Hex
	}
	return ""
}

// Patterns groups keys, the most numerous pattern first.
func Patterns(s *Sample) []*Pattern {
	byLength := map[int][]member{}
	for i := range s.Keys {
		parts := strings.Split(s.Keys[i].Name, ":")
		byLength[len(parts)] = append(byLength[len(parts)], member{&s.Keys[i], parts})
	}
	var out []*Pattern
	for _, group := range byLength {
		out = append(out, grouped(group, 0, nil)...)
	}
	slices.SortFunc(out, func(a, b *Pattern) int {
		return cmp.Or(cmp.Compare(b.Keys, a.Keys), cmp.Compare(a.String(), b.String()))
	})
	for _, p := range out {
		for _, q := range out {
			if p != q && overlap(p.Segments, q.Segments) {
				p.Collides = append(p.Collides, q.String())
			}
		}
	}
	return out
}

// member is a key that is on its way to its pattern.
type member struct {
	key   *Key
	parts []string
}

// grouped takes keys that agree up to a segment apart by that one.
func grouped(keys []member, at int, prefix []string) []*Pattern {
	if at == len(keys[0].parts) {
		return []*Pattern{measure(keys, prefix)}
	}
	groups := map[string][]member{}
	literals := map[string]bool{}
	for _, k := range keys {
		segment := kind(k.parts[at])
		if segment == "" {
			segment = k.parts[at]
			literals[segment] = true
		}
		groups[segment] = append(groups[segment], k)
	}
	if len(literals) > literalsMax {
		for l := range literals {
			groups[Text] = append(groups[Text], groups[l]...)
			delete(groups, l)
		}
	}
	var out []*Pattern
	for segment, list := range groups {
		out = append(out, grouped(list, at+1, append(slices.Clone(prefix), segment))...)
	}
	return out
}

func measure(keys []member, segments []string) *Pattern {
	p := &Pattern{Segments: segments, Sampled: len(keys), IdleMedian: -1}
	var count, noTTL, large, bytes float64
	var ttl, idle []time.Duration
	slices.SortFunc(keys, func(a, b member) int { return cmp.Compare(a.key.Name, b.key.Name) })
	for _, m := range keys {
		k := m.key
		count += k.Weight
		bytes += k.Weight * float64(k.Bytes)
		if k.TTL < 0 {
			noTTL += k.Weight
		} else {
			ttl = append(ttl, k.TTL)
		}
		if k.Idle >= 0 {
			idle = append(idle, k.Idle)
		}
		if k.Bytes > LargeBytes {
			large += k.Weight
		}
		if k.Bytes > p.LargestBytes {
			p.Largest, p.LargestBytes = k.Name, k.Bytes
		}
		if !slices.Contains(p.Types, k.Type) {
			p.Types = append(p.Types, k.Type)
		}
	}
	slices.Sort(p.Types)
	p.Keys, p.NoTTL, p.Large, p.Bytes = round(count), round(noTTL), round(large), round(bytes)
	if len(ttl) > 0 {
		slices.Sort(ttl)
		p.TTLMin, p.TTLMedian, p.TTLMax = ttl[0], ttl[len(ttl)/2], ttl[len(ttl)-1]
	}
	if len(idle) > 0 {
		slices.Sort(idle)
		p.IdleMedian = idle[len(idle)/2]
	}
	return p
}

func round(f float64) int64 { return int64(f + 0.5) }

// overlap reports whether some name has both forms. A text may look like a
// number; a number is never a uuid, and hexadecimal may be one.
func overlap(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !meet(a[i], b[i]) {
			return false
		}
	}
	return true
}

func meet(a, b string) bool {
	switch {
	case a == b, a == Text, b == Text:
		return true
	case !IsPlaceholder(a) || !IsPlaceholder(b):
		return false // a literal that looked like a value would be one
	}
	pair := [2]string{min(a, b), max(a, b)}
	switch pair {
	case [2]string{Hex, Number}, [2]string{Date, Number}, [2]string{Date, Hex}:
		return true
	}
	return false
}
