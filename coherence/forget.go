package coherence

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// ForgetRateDefault is ForgetRequest.Rate's.
const ForgetRateDefault = 20000

// ForgetRequest asks for everything to be forgotten whose key matches a glob.
type ForgetRequest struct {
	// Glob is a pattern of full names, in the syntax of SCAN. It means the names
	// of entries: their versions and tickets are found with them.
	Glob string
	// X is a position of now: what a standby must have replayed for its values
	// to be stored again.
	X change.Position
	// Rate is how many keys each master looks at in a second (default 20,000).
	Rate int
	// Group is a small number of the caller's for a name, by which Forgotten
	// counts; nil: 0. Tell says whose names are broadcast (nil: nobody's): those
	// of entries that no raise of a class reaches. Both are called by several
	// goroutines.
	Group func(name string) int
	Tell  func(name string) bool
	// Progress, which may be nil, is called by one goroutine at a time.
	Progress func(Forgotten)
}

// Forgotten is what a Forget has done so far.
type Forgotten struct {
	// Looked is how many keys were looked at, about; each is looked at twice,
	// once for tickets and once for values.
	Looked int
	// Masters are those that were looked at.
	Masters []string
	// Unlinked are the values that were there, by group.
	Unlinked []int
}

// Forget unlinks every entry of a glob, with its ticket, by SCAN on every master
// at a bounded rate. It reaches what was cached, or had its ticket, before it
// began. An L1 is told of the names that Tell says; of others a raise has told
// it: the classes that the glob can match are to be raised before, which refuses
// what is being filled too.
//
// Lethe's own keys and other namespaces are never touched. After an error, and
// when slots have moved, it is repeated whole.
func (s *Store) Forget(ctx context.Context, r ForgetRequest) (Forgotten, error) {
	if r.Rate <= 0 {
		r.Rate = ForgetRateDefault
	}
	if r.Group == nil {
		r.Group = func(string) int { return 0 }
	}
	f := forget{s: s, r: r, glob: keytext.ParseGlob(r.Glob)}
	passes := []forgetPass{
		// The tickets first: see Walk.
		{"*:t*", s.layout.ticketOf},
		{EscapeGlob(f.glob.Prefix()) + "*", entryOf},
	}
	for range walkTries {
		complete := true
		for _, pass := range passes {
			ok, err := s.ScanKeys(ctx, pass.match, func(ctx context.Context, p KeyPage) error {
				started := time.Now()
				if err := f.page(ctx, p, pass.names); err != nil {
					return err
				}
				return f.hold(ctx, started, p.Looked)
			})
			if err != nil {
				return f.done, fmt.Errorf("forget %q: %w", r.Glob, err)
			}
			complete = complete && ok
		}
		if complete {
			return f.done, nil
		}
	}
	return f.done, fmt.Errorf("forget %q: the slots of the cluster keep moving", r.Glob)
}

// forgetPass is one scan: what SCAN is to find, and the entries that a key may
// be of.
type forgetPass struct {
	match string
	names func(key string) []string
}

func entryOf(key string) []string {
	if strings.HasPrefix(key, "lethe:") {
		return nil
	}
	return []string{key}
}

// ticketOf returns the entries that a key may be the ticket of: "a" and "{a}"
// have the same one.
func (l *Layout) ticketOf(key string) []string {
	var name string
	rest, odd := strings.CutPrefix(key, "lethe:t:{")
	ok := false
	if odd {
		_, name, ok = strings.Cut(rest, "}:")
	} else {
		name, ok = strings.CutSuffix(key, ":t")
	}
	if !ok {
		return nil
	}
	names := []string{name, strings.TrimSuffix(strings.TrimPrefix(name, "{"), "}")}
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return l.Ticket(n) != key })
}

type forget struct {
	s    *Store
	r    ForgetRequest
	glob *keytext.Glob

	mu   sync.Mutex
	done Forgotten
}

// matches reports whether an entry is of the glob: by its key, or by what its
// key is without the version of its value.
func (f *forget) matches(name string) bool {
	if f.glob.Match(name) {
		return true
	}
	at := strings.LastIndexByte(name, '@')
	return at >= 0 && strings.Trim(name[at+1:], "0123456789") == "" && f.glob.Match(name[:at])
}

// page forgets what matches among some keys.
func (f *forget) page(ctx context.Context, p KeyPage, namesOf func(string) []string) error {
	var batch []Invalidation
	var tell []string
	for _, key := range p.Keys {
		for _, name := range namesOf(key) {
			if !f.matches(name) {
				continue
			}
			batch = append(batch, Invalidation{Name: name, X: f.r.X, Plain: true, Group: f.r.Group(name)})
			if f.r.Tell != nil && f.r.Tell(name) {
				tell = append(tell, name)
			}
		}
	}
	result, err := f.s.Invalidate(ctx, batch)
	if err != nil {
		return err
	}
	// L2 first, then the broadcast.
	if len(tell) > 0 {
		if _, _, err := f.s.BroadcastKeys(ctx, Message{X: f.r.X, Names: tell}, nil); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done.Looked += p.Looked
	if !slices.Contains(f.done.Masters, p.Node) {
		f.done.Masters = append(f.done.Masters, p.Node)
	}
	for g, c := range result.Groups {
		for len(f.done.Unlinked) <= g {
			f.done.Unlinked = append(f.done.Unlinked, 0)
		}
		f.done.Unlinked[g] += c.Deleted
	}
	if f.r.Progress != nil {
		f.r.Progress(f.done)
	}
	return nil
}

// hold waits until so many keys may have been looked at since started, and for
// at least as long as that took.
func (f *forget) hold(ctx context.Context, started time.Time, looked int) error {
	took := time.Since(started)
	due := time.Duration(float64(looked) / float64(f.r.Rate) * float64(time.Second))
	t := time.NewTimer(max(due-took, min(took, time.Second)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
