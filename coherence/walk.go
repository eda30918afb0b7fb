package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// walkCount is how many keys a step of a walk looks at.
const walkCount = 1000

// walkTries bounds how often a walk begins again because slots moved.
const walkTries = 5

// Walk unlinks every key that matches one of the glob patterns, and every
// ticket of one: how a raise reaches plain values, which carry no generation.
// It is called after the record was raised. A ticket that was there when the
// walk began is found; a later one belongs to a reader who knew the raise.
//
// Patterns are full names in the syntax of SCAN, literals escaped. Lethe's own
// keys are never touched, whatever matches. progress, which may be nil, is
// called by one goroutine at a time with the totals so far. Blocks for as long
// as it takes to scan every master; after an error it is repeated whole.
func (s *Store) Walk(ctx context.Context, patterns []string, progress func(scanned, unlinked int)) error {
	if len(patterns) == 0 {
		return nil
	}
	// The tickets first: once they are gone nothing from before the raise can
	// be filled any more, and what was filled is there when the values' turn
	// comes. In one turn a value could be filled behind the cursor, by a ticket
	// before it.
	var match, names []string
	for _, p := range patterns {
		if name, ok := oneName(p); ok {
			names = append(names, name)
			continue
		}
		match = append(match, "{"+p+"}:t", "lethe:t:{*}:"+p, p+":t") // the last with a hash tag of their own
	}
	for _, p := range patterns {
		if _, ok := oneName(p); !ok {
			match = append(match, p)
		}
	}
	w := walk{s: s, match: match, progress: progress}
	if err := w.named(ctx, names); err != nil {
		return fmt.Errorf("walk: %w", err)
	}
	if len(match) == 0 {
		return nil
	}
	for range walkTries {
		before, err := s.topology(ctx)
		if err != nil {
			return fmt.Errorf("walk: %w", err)
		}
		if err := w.masters(ctx, before); err != nil {
			return fmt.Errorf("walk: %w", err)
		}
		after, err := s.topology(ctx)
		if err != nil {
			return fmt.Errorf("walk: %w", err)
		}
		// A slot that moved may have moved from a master that was not walked
		// yet to one that was.
		if sameMasters(before, after) {
			return nil
		}
	}
	return errors.New("walk: the slots of the cluster keep moving")
}

type walk struct {
	s        *Store
	match    []string
	progress func(scanned, unlinked int)

	mu                sync.Mutex
	scanned, unlinked int
}

// oneName returns the name that a pattern without wildcards stands for.
func oneName(pattern string) (name string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case c == '\\' && i+1 < len(pattern):
			i++
			b.WriteByte(pattern[i])
		case c == '*' || c == '?' || c == '[':
			return "", false
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// named unlinks names, each with its ticket in one command, without looking for
// them: there may be many, and each would cost a scan of all that there is.
func (w *walk) named(ctx context.Context, names []string) error {
	for part := range slices.Chunk(names, walkCount) {
		units := make([]unit, 0, len(part))
		for _, key := range part {
			if !strings.HasPrefix(key, "lethe:") {
				units = append(units, unit{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "unlink", key, w.s.layout.Ticket(key))}})
			}
		}
		if err := w.s.do(ctx, units); err != nil {
			return err
		}
		for _, u := range units {
			w.unlinked += int(u.cmds[0].(*redis.IntCmd).Val())
		}
		if w.progress != nil {
			w.progress(w.scanned, w.unlinked)
		}
	}
	return nil
}

func (w *walk) masters(ctx context.Context, masters []master) error {
	var wg sync.WaitGroup
	errs := make([]error, len(masters))
	for i, m := range masters {
		wg.Go(func() {
			for _, pattern := range w.match {
				if errs[i] = w.one(ctx, m.node, pattern); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (w *walk) one(ctx context.Context, n *node, pattern string) error {
	var cursor uint64
	for {
		if err := n.state(ctx); err != nil {
			return err
		}
		keys, next, err := n.conn().Scan(ctx, cursor, pattern, walkCount).Result()
		if err != nil {
			return fmt.Errorf("scan %s: %w", n.name, err)
		}
		units := make([]unit, 0, len(keys))
		for _, key := range keys {
			if strings.HasPrefix(key, "lethe:") && !strings.HasPrefix(key, "lethe:t:") {
				continue
			}
			units = append(units, unit{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "unlink", key, w.s.layout.Ticket(key))}})
		}
		if err := w.s.do(ctx, units); err != nil {
			return err
		}
		w.mu.Lock()
		w.scanned += walkCount
		for _, u := range units {
			w.unlinked += int(u.cmds[0].(*redis.IntCmd).Val())
		}
		if w.progress != nil {
			w.progress(w.scanned, w.unlinked)
		}
		w.mu.Unlock()
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
