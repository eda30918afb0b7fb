package coherence

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// pageCount is how many members a step of an enumeration returns by default.
const pageCount = 512

// Page is one step of an enumeration of what is registered under a name.
type Page struct {
	// Members may be returned by more than one page.
	Members []string
	// Next continues the enumeration; 0 is its end.
	Next uint64

	// index is the rest of the index's key, behind its prefix. id is that of
	// the header as it was before the members were read, seqs are the
	// members' numbers.
	index, id string
	seqs      []string
}

// Index is the index that the page is of.
func (p *Page) Index() Index { return Index(p.index) }

// Members enumerates what is registered under a tag, about count at a time
// (default 512), beginning with cursor 0 and ending when next is 0. A member
// that was registered before the enumeration began and not pruned since is
// returned at least once, perhaps more often.
func (s *Store) Members(ctx context.Context, tag string, cursor uint64, count int) (members []string, next uint64, err error) {
	p, err := s.MemberPage(ctx, tag, cursor, count)
	return p.Members, p.Next, err
}

// MemberPage is Members whose step can be pruned: see PrunePages.
func (s *Store) MemberPage(ctx context.Context, tag string, cursor uint64, count int) (Page, error) {
	pages, err := s.pages(ctx, []Index{s.layout.index(tag)}, cursor, count, "hscan")
	if err != nil {
		return Page{}, fmt.Errorf("enumerate tag %q: %w", tag, err)
	}
	return pages[0], nil
}

// MemberCount is how many members are registered under tags; one that is under
// several counts for each.
func (s *Store) MemberCount(ctx context.Context, tags ...string) (int, error) {
	units := make([]unit, len(tags))
	for i, tag := range tags {
		key := s.layout.TagIndex(tag)
		units[i] = unit{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "hlen", key)}}
	}
	if err := s.do(ctx, units); err != nil {
		return 0, fmt.Errorf("count members of %q: %w", tags, err)
	}
	n := 0
	for _, u := range units {
		n += int(u.cmds[0].(*redis.IntCmd).Val())
	}
	return n, nil
}

// Prune removes members of a tag whose entries are gone, in one step of an
// enumeration like that of Members; see PrunePages.
func (s *Store) Prune(ctx context.Context, tag string, cursor uint64, count int) (removed int, next uint64, err error) {
	p, err := s.MemberPage(ctx, tag, cursor, count)
	if err != nil {
		return 0, p.Next, err
	}
	_, removed, err = s.PrunePages(ctx, p)
	return removed, p.Next, err
}

// IndexPages reads the first page of each index, about count members (default
// 512) each. It blocks for one round trip.
func (s *Store) IndexPages(ctx context.Context, indexes []Index, count int) ([]Page, error) {
	pages, err := s.pages(ctx, indexes, 0, count, "hscan")
	if err != nil {
		return nil, fmt.Errorf("enumerate %d indexes: %w", len(indexes), err)
	}
	return pages, nil
}

// IndexPage continues the enumeration of one index.
func (s *Store) IndexPage(ctx context.Context, index Index, cursor uint64, count int) (Page, error) {
	pages, err := s.pages(ctx, []Index{index}, cursor, count, "hscan")
	if err != nil {
		return Page{}, fmt.Errorf("enumerate index %q: %w", index, err)
	}
	return pages[0], nil
}

// SamplePage reads count members of an index at random, none of them twice.
// It is a page like any other, but for Next, which is 0.
func (s *Store) SamplePage(ctx context.Context, index Index, count int) (Page, error) {
	pages, err := s.pages(ctx, []Index{index}, 0, count, "hrandfield")
	if err != nil {
		return Page{}, fmt.Errorf("sample index %q: %w", index, err)
	}
	return pages[0], nil
}

func (s *Store) pages(ctx context.Context, indexes []Index, cursor uint64, count int, command string) ([]Page, error) {
	if count <= 0 {
		count = pageCount
	}
	units := make([]unit, len(indexes))
	for i, index := range indexes {
		// The header's id first: a header that comes between the two has
		// another, and what was read is then not removed.
		id := redis.NewStringCmd(ctx, "hget", index.header(), "id")
		var c redis.Cmder
		if command == "hrandfield" {
			c = redis.NewStringSliceCmd(ctx, command, index.key(), count, "withvalues")
		} else {
			c = redis.NewScanCmd(ctx, nil, command, index.key(), cursor, "count", count)
		}
		units[i] = unit{key: index.key(), cmds: []redis.Cmder{id, c}}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, err
	}
	pages := make([]Page, len(indexes))
	for i := range pages {
		p := &pages[i]
		p.index = string(indexes[i])
		p.id = units[i].cmds[0].(*redis.StringCmd).Val()
		var pairs []string
		switch c := units[i].cmds[1].(type) {
		case *redis.ScanCmd:
			pairs, p.Next = c.Val()
		case *redis.StringSliceCmd:
			pairs = c.Val()
		}
		p.Members, p.seqs = make([]string, 0, len(pairs)/2), make([]string, 0, len(pairs)/2)
		for pair := range slices.Chunk(pairs, 2) {
			p.Members, p.seqs = append(p.Members, pair[0]), append(p.seqs, pair[1])
		}
	}
	return pages, nil
}

// PrunePages removes those members of the pages whose entries are gone; gone
// says how many were. A member that is registered again meanwhile stays; with
// the last one goes the header of its name. Several may prune the same index at
// the same time. It blocks for at most two round trips.
//
// An entry counts as gone only when its own master says so; behind a master
// that was replaced it may come back, which is why a change of run_id raises
// the classes that use tags. A master that does not answer has said nothing:
// that is an error, and nothing is removed.
func (s *Store) PrunePages(ctx context.Context, pages ...Page) (gone, removed int, err error) {
	var units []unit
	for i := range pages {
		for _, m := range pages[i].Members {
			// An empty entry exists, or the ticket beside a plain one: its fill
			// may be about to follow.
			units = append(units, unit{key: m, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "exists", m, s.layout.Ticket(m))}})
		}
	}
	if err := s.do(ctx, units); err != nil {
		return 0, 0, fmt.Errorf("prune: look for entries: %w", err)
	}
	var scripts []unit
	for i, at := 0, 0; i < len(pages); i++ {
		p := &pages[i]
		args := []any{p.id, randomID()}
		for m := range p.Members {
			if units[at].cmds[0].(*redis.IntCmd).Val() == 0 {
				args = append(args, p.Members[m], p.seqs[m])
				gone++
			}
			at++
		}
		if len(args) > 2 {
			scripts = append(scripts, s.pruneUnit(ctx, p.Index(), args))
		}
	}
	if err := s.do(ctx, scripts); err != nil {
		return gone, 0, fmt.Errorf("prune: %w", err)
	}
	for _, u := range scripts {
		removed += int(u.cmds[0].(*redis.IntCmd).Val())
	}
	return gone, removed, nil
}

// pruneUnit is the second half of a prune: the header's id, one for a header
// without, then pairs of member and the number that was read before the member's
// entry was seen to be absent.
func (s *Store) pruneUnit(ctx context.Context, index Index, args []any) unit {
	c := redis.NewIntCmd(ctx, s.evalArgs(scriptPrune, index.spare(), []string{index.header(), index.key()}, args...)...)
	return unit{key: index.key(), cmds: []redis.Cmder{c}}
}

// Index is the index of one name, as a scan of the keys finds it: the part that
// the keys of header and index have in common. It does not say which name that
// is ("{a}" may be a name or one in braces), which nothing but people need.
type Index string

// The prefixes of the keys of a name.
const (
	headerPrefix = "lethe:h:"
	indexPrefix  = "lethe:i:"
)

func (l *Layout) index(name string) Index {
	return Index(strings.TrimPrefix(l.TagIndex(name), indexPrefix))
}

func (i Index) header() string { return headerPrefix + string(i) }
func (i Index) key() string    { return indexPrefix + string(i) }

// spare is a key in the slot of the others that never holds anything.
func (i Index) spare() string { return "lethe:-:" + string(i) }

// owns reports whether an index is one of a namespace: of its own, and of every
// other whose names begin like those of this one ("shop" and "shop:eu", any and
// the empty one). A name does not say where its namespace ends.
func (l *Layout) owns(i Index) bool {
	if l.namespace == "" {
		return true
	}
	rest, full := string(i), l.namespace+":"
	if strings.HasPrefix(rest, full) {
		return true // a name with a hash tag of its own
	}
	rest, ok := strings.CutPrefix(rest, "{")
	if !ok {
		return false
	}
	if strings.HasPrefix(rest, full) {
		return true
	}
	// {<number>}:<name>
	digits := strings.TrimLeft(rest, "0123456789")
	rest, ok = strings.CutPrefix(digits, "}:")
	return ok && strings.HasPrefix(rest, full)
}

// IndexStat is what an index costs.
type IndexStat struct {
	// Members is how many there are, the dead included.
	Members int
	// Bytes is the memory of index and header as Redis estimates it; 0 if it
	// was not asked for, or is not told.
	Bytes int64
}

// IndexStats asks for the size of indexes, and the memory of those for which
// memory, which may be nil, is true. It blocks for two round trips.
func (s *Store) IndexStats(ctx context.Context, indexes []Index, memory func(i int) bool) ([]IndexStat, error) {
	units := make([]unit, len(indexes))
	var weigh []unit
	var weighed []int
	for i, index := range indexes {
		units[i] = unit{key: index.key(), cmds: []redis.Cmder{redis.NewIntCmd(ctx, "hlen", index.key())}}
		if memory == nil || !memory(i) {
			continue
		}
		weighed = append(weighed, i)
		weigh = append(weigh, unit{key: index.key(), cmds: []redis.Cmder{
			redis.NewIntCmd(ctx, "memory", "usage", index.key()), redis.NewIntCmd(ctx, "memory", "usage", index.header()),
		}})
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("ask for the size of indexes: %w", err)
	}
	// Some servers, or their rights, do not have MEMORY.
	if err := s.do(ctx, weigh); err != nil && !isServerError(err) {
		return nil, fmt.Errorf("ask for the memory of indexes: %w", err)
	}
	stats := make([]IndexStat, len(indexes))
	for i, u := range units {
		stats[i].Members = int(u.cmds[0].(*redis.IntCmd).Val())
	}
	for at, i := range weighed {
		for _, c := range weigh[at].cmds {
			stats[i].Bytes += c.(*redis.IntCmd).Val()
		}
	}
	return stats, nil
}

// ScanIndexes finds the indexes of the namespace by SCAN, on every master; see
// ScanKeys, which it is like. An index may be found more than once.
func (s *Store) ScanIndexes(ctx context.Context, step func(ctx context.Context, looked int, found []Index) error) (complete bool, err error) {
	match := indexPrefix + "*"
	if s.layout.namespace != "" {
		match += EscapeGlob(s.layout.namespace) + ":*"
	}
	return s.ScanKeys(ctx, match, func(ctx context.Context, p KeyPage) error {
		var found []Index
		for _, key := range p.Keys {
			if i := Index(strings.TrimPrefix(key, indexPrefix)); s.layout.owns(i) {
				found = append(found, i)
			}
		}
		return step(ctx, p.Looked, found)
	})
}
