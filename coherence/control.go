package coherence

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// namespaceClass is the class record of the whole namespace.
const namespaceClass = "*"

// Control reads the control data at one moment: the source record, the records
// of the classes and of "*", v, w, open purges, named classes, the last
// broadcast and the end of the stream.
func (s *Store) Control(ctx context.Context, classes ...string) (*ControlState, error) {
	return s.control(ctx, classes, nil)
}

// control is Control, with one more command of the control data behind it, on
// the same connection.
func (s *Store) control(ctx context.Context, classes []string, behind redis.Cmder) (*ControlState, error) {
	l := s.layout
	if !slices.Contains(classes, namespaceClass) {
		classes = append(slices.Clone(classes), namespaceClass)
	}
	keys := []string{
		l.Control("source"), l.Control("v"), l.Control("purges"), l.Control("last"), l.Control("named"), l.Control("stream"),
	}
	for _, c := range classes {
		keys = append(keys, l.Control("class:"+c))
	}
	c := redis.NewSliceCmd(ctx, s.evalArgs(scriptControl, "", keys)...)
	cmds := []redis.Cmder{c}
	if behind != nil {
		cmds = append(cmds, behind)
	}
	if err := s.do(ctx, []unit{{key: keys[0], cmds: cmds}}); err != nil {
		return nil, fmt.Errorf("read control: %w", err)
	}
	state, err := parseControl(c.Val(), classes)
	if err != nil {
		return nil, fmt.Errorf("read control: %w", err)
	}
	return state, nil
}

// fields reads a script's reply; the first error stays.
type fields struct{ err error }

func (f *fields) list(v any, least int) []any {
	l, ok := v.([]any)
	if !ok && f.err == nil || len(l) < least {
		f.err = fmt.Errorf("unexpected reply %v", v)
		return make([]any, least)
	}
	return l
}

func (f *fields) text(v any) string { t, _ := v.(string); return t }

func (f *fields) uint(v any, bits int) uint64 {
	t := f.text(v)
	if t == "" {
		return 0
	}
	n, err := strconv.ParseUint(t, 10, bits)
	f.keep(err)
	return n
}

func (f *fields) position(v any) change.Position {
	t := f.text(v)
	if t == "" {
		return change.Position{}
	}
	p, err := change.ParsePosition(t)
	f.keep(err)
	return p
}

func (f *fields) generation(v any) uint64 {
	t := f.text(v)
	if t == "" {
		return 0
	}
	g, err := ParseGeneration(t)
	f.keep(err)
	return g
}

func (f *fields) keep(err error) {
	if f.err == nil {
		f.err = err
	}
}

func parseControl(reply []any, classes []string) (*ControlState, error) {
	var f fields
	reply = f.list(any(reply), 7)
	c := &ControlState{Classes: make(map[string]ClassRecord, len(classes))}
	source := f.list(reply[0], 5)
	if era := f.text(source[0]); era != "" {
		n, err := strconv.ParseUint(era, 16, 16)
		f.keep(err)
		c.Source.Era = uint16(n)
	}
	c.Source.SystemID = f.uint(source[1], 64)
	c.Source.Timeline = uint32(f.uint(source[2], 32))
	c.Buckets, c.Layout = int(f.uint(source[3], 31)), int(f.uint(source[4], 31))
	c.V = f.position(reply[1])
	for pair := range slices.Chunk(f.list(reply[2], 0), 2) {
		p, err := parsePurge(f.text(pair[0]))
		f.keep(err)
		c.Purges = append(c.Purges, p)
	}
	last := f.list(reply[3], 4)
	c.Number, c.ID = f.uint(last[0], 64), f.text(last[1])
	c.W, c.Digest = f.position(last[2]), f.text(last[3])
	for _, n := range f.list(reply[4], 0) {
		c.Named = append(c.Named, f.text(n))
	}
	slices.Sort(c.Named)
	c.StreamEnd = f.text(reply[5])
	for i, r := range f.list(reply[6], len(classes)) {
		r := f.list(r, 3)
		c.Classes[classes[i]] = ClassRecord{Generation: f.generation(r[0]), Bound: f.position(r[1]), Cause: f.text(r[2])}
	}
	return c, f.err
}

// Known is what a reader of a class knows from the control data: the greater
// generation of its own record and the namespace's, and the greater bound. It
// goes into BeginRequest.
func (c *ControlState) Known(class string) Known {
	own, all := c.Classes[class], c.Classes[namespaceClass]
	k := Known{Source: c.Source, V: c.V, Generation: max(own.Generation, all.Generation), Bound: own.Bound.Max(all.Bound)}
	if k.V.Era != k.Source.Era {
		k.V = change.Position{}
	}
	return k
}

// Supported reports whether this program knows the layout that the source
// record speaks of, on this kind of Redis. If not it neither fills from
// standbys nor registers under tags.
func (c *ControlState) Supported(l *Layout) bool {
	return c.Layout == LayoutVersion && c.Buckets == l.Buckets()
}
