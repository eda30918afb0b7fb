package invalidator

import (
	"context"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// named adds the purges of keys that are used as names: entries made from the
// cached value of one of them are registered under it.
//
// The list of such classes came with the broadcast, behind the invalidation of
// the keys, which is what makes it exact; see coherence.BroadcastKeys.
func (l *lane) named(purges []purge, classes []string) []purge {
	if len(l.keys.list) == 0 {
		return purges
	}
	l.w.hook("named")
	if len(classes) == 0 {
		return purges
	}
	named := make(map[string]struct{}, len(classes))
	for _, n := range classes {
		named[n] = struct{}{}
	}
	p := purge{asks: rewarmAsks{action: rules.Delete}}
	for i := range l.keys.list {
		k := &l.keys.list[i]
		class := l.rules.Plan.ClassOf([]byte(k.Name))
		if class == nil {
			continue
		}
		if _, ok := named[class.Name]; ok {
			p.X = p.X.Max(k.X)
			p.Tags = append(p.Tags, string([]byte(k.Name))) // the name is the batch's memory
		}
	}
	if len(p.Tags) > 0 {
		purges = append(purges, p)
	}
	return purges
}

// open does steps 1 and 2 of a purge: from its reply on no reader of the client
// takes a member for a hit, however many there are.
func (l *lane) open(ctx context.Context, p coherence.Purge) error {
	l.w.hook("open")
	return l.w.retry(ctx, "open purge", func(ctx context.Context) error {
		return l.w.store.OpenPurge(ctx, p, l.batch.v)
	})
}

// sweepBeside sweeps the batch's purges beside the stream. It blocks while too
// many others run.
func (l *lane) sweepBeside(ctx context.Context, purges []purge, v change.Position, m *mark) error {
	select {
	case l.w.sweeps <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s := &sweeper{w: l.w, rules: l.rules, v: v}
	gauge := l.w.metrics.pending.WithLabelValues("sweep")
	gauge.Inc()
	l.sweeps.Go(func() {
		ctx := l.ctx
		defer func() { <-l.w.sweeps }()
		defer gauge.Dec()
		s.follower = s.follow(ctx)
		defer s.follower.end()
		for i := range purges {
			if err := s.merge(ctx, &purges[i]); err != nil {
				return
			}
			if err := s.sweep(ctx, &purges[i]); err != nil {
				return // ctx ended: never done, so delivered again
			}
		}
		l.led.done(m)
	})
	return nil
}

// sweeper does steps 3 and 4 of purges, in one goroutine.
type sweeper struct {
	w     *Worker
	rules *Rules
	v     change.Position

	batch   []coherence.Invalidation
	names   []string
	rewarms rewarms
	// attempts at the purge, this one included.
	attempts int

	follower *follower
	progress *progress
	pace     sweepPace
}

// merge makes one open purge of those that have waited in a window.
func (s *sweeper) merge(ctx context.Context, p *purge) error {
	if p.group == nil {
		return nil
	}
	return s.w.retry(ctx, "open purge", func(ctx context.Context) error { return p.group.merge(ctx, s.w, s.v) })
}

// sweep enumerates the members, invalidates each, and only then lets readers
// take values of the tag for hits again. After a node that lost writes was
// redone it begins again with the raise of the table.
func (s *sweeper) sweep(ctx context.Context, p *purge) (err error) {
	first := true
	s.attempts = 0
	s.pace = sweepPace{size: min(sweepFirst, s.w.cfg.SweepBatch), most: s.w.cfg.SweepBatch}
	defer func() {
		if s.progress != nil {
			s.progress.end(ctx, err)
			s.progress = nil
		}
	}()
	return s.w.retry(ctx, "sweep", func(ctx context.Context) error {
		if !first {
			if err := s.w.store.OpenPurge(ctx, p.Purge, s.v); err != nil {
				return err
			}
		}
		first = false
		s.attempts++
		p.rewarmed = 0 // from the beginning
		tags := p.Tags
		if p.All {
			tags = tags[:min(1, len(tags))] // the others' members are looked up
		}
		if s.progress == nil {
			total, err := s.w.store.MemberCount(ctx, tags...)
			if err != nil {
				return err
			}
			s.progress = s.w.newProgress(p.Purge, total)
		}
		for _, tag := range tags {
			if err := s.members(ctx, p, tag); err != nil {
				return err
			}
		}
		s.w.hook("close")
		return s.w.store.ClosePurge(ctx, p.Purge, s.v)
	})
}

func (s *sweeper) members(ctx context.Context, p *purge, tag string) error {
	for cursor := uint64(0); ; {
		s.w.hook("members")
		started := time.Now()
		page, err := s.w.store.MemberPage(ctx, tag, cursor, s.pace.size)
		if err != nil {
			return err
		}
		members := page.Members
		if p.All {
			if members, err = s.intersect(ctx, slices.Clone(members), p.Tags[1:]); err != nil {
				return err
			}
		}
		// A page may be much larger than what was asked for.
		for chunk := range slices.Chunk(members, s.w.cfg.SweepBatch) {
			if err := s.invalidate(ctx, p, chunk); err != nil {
				return err
			}
		}
		s.progress.add(ctx, len(page.Members))
		if p.asks.action == rules.Delete {
			// What is filled again needs its registration, and what is stale is
			// there: neither is worth a look.
			s.follower.page(page)
		}
		if cursor = page.Next; cursor == 0 {
			return nil
		}
		if wait := s.pace.after(time.Since(started)); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return err
			}
		}
	}
}

// intersect keeps the members that are registered under all tags.
func (s *sweeper) intersect(ctx context.Context, members, tags []string) ([]string, error) {
	for _, tag := range tags {
		if len(members) == 0 {
			return nil, nil
		}
		in, err := s.w.store.Registered(ctx, tag, members)
		if err != nil {
			return nil, err
		}
		kept := members[:0]
		for i, m := range members {
			if in[i] {
				kept = append(kept, m)
			}
		}
		members = kept
	}
	return members, nil
}

// invalidate empties some members. Plain ones are told by name too: their
// values carry no tags, so an L1 that holds one learns nothing from the purge.
func (s *sweeper) invalidate(ctx context.Context, p *purge, members []string) error {
	if len(members) == 0 {
		return nil
	}
	s.batch = s.batch[:0]
	for _, m := range members {
		class := s.rules.Plan.ClassOf([]byte(m))
		asked, tell := s.action(ctx, p, class, m)
		action, isPlain := s.w.variant(class, asked)
		s.batch = append(s.batch, coherence.Invalidation{Name: m, X: p.X, Action: action, Plain: isPlain, Tell: tell})
	}
	result, err := s.w.store.Invalidate(ctx, s.batch)
	if err != nil {
		return err
	}
	s.w.metrics.swept.Add(float64(len(members)))
	plain := s.batch[:0]
	for _, k := range s.batch {
		if k.Plain {
			plain = append(plain, k)
		}
	}
	if _, _, err = s.w.broadcastKeys(ctx, plain, s.v, &s.names, nil); err != nil {
		return err
	}
	if list := s.rewarms.take(result.Told, s.attempts); len(list) > 0 {
		s.w.cfg.Rewarmer.Rewarm(list)
	}
	return nil
}
