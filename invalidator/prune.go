package invalidator

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// Defaults of pruning.
const (
	// PruneRateDefault is Config.PruneRate's.
	PruneRateDefault = 20000

	// pruneTarget is the share of garbage that the pace aims at: what is found
	// when a look is due. Below it a sample is believed, and nothing is done.
	pruneTarget = 0.02
	// pruneFirst, pruneLeast and pruneMost are the time between two rounds: at
	// the start, where much is found and where nothing is.
	pruneFirst = 30 * time.Second
	pruneLeast = 5 * time.Second
	pruneMost  = 10 * time.Minute

	// prunePage is how many members are looked at in one call; pruneSmall is
	// up to which size an index is looked at whole, without a sample;
	// pruneSample is the size of a sample.
	prunePage   = 500
	pruneSmall  = 500
	pruneSample = 200
	// pruneNames is how many indexes are looked at together.
	pruneNames = 100
	// memoryOneIn is of how many small indexes one is asked for its memory.
	memoryOneIn = 16

	// Names where much was found are looked at again before the next round
	// comes to them, which on a large Redis may take hours: at most pruneHot
	// of them, each of at least pruneHotGarbage dead members.
	pruneHot        = 4096
	pruneHotGarbage = 50
)

// Pruned says what a round of the pruner saw and did.
type Pruned struct {
	// Names and Members are what is in the index, the dead included.
	Names, Members int
	// Bytes is the memory of the index, extrapolated from a sample.
	Bytes int64
	// Garbage is how many members' entries were gone when they were looked at,
	// extrapolated where a sample was looked at; Removed is how many of them
	// were removed.
	Garbage, Removed int
	// Complete is false if slots of a cluster moved meanwhile.
	Complete bool
}

// Ratio is the share of garbage.
func (p Pruned) Ratio() float64 {
	if p.Members == 0 {
		return 0
	}
	return float64(p.Garbage) / float64(p.Members)
}

// Prune removes from the index what nobody purges: members whose entries have
// expired or were evicted. It looks at all names of the namespace again and
// again, the sooner the more it found, whenever this process works on partition
// 0, and blocks until ctx ends. Config.PruneRate holds it back. It returns nil:
// what fails is left to the next round.
//
// Nothing depends on it but memory: a purge finds a member that is dead, too. By
// which rule it removes is coherence.PrunePages' affair, and holds for any
// number of pruners.
func (w *Worker) Prune(ctx context.Context) error {
	p := w.newPruner()
	if p.rate <= 0 {
		<-ctx.Done()
		return nil
	}
	failing := false
	for ctx.Err() == nil {
		wait := pruneLeast
		if w.partitionZero() == nil {
			w.metrics.index(Pruned{}) // the owner tells
		} else {
			var err error
			wait, err = p.turn(ctx, time.Now())
			if err != nil && !failing && ctx.Err() == nil {
				w.log.WarnContext(ctx, "pruning of the index failed, trying again", "error", err)
			}
			failing = err != nil
			wait = p.patient(wait, err)
		}
		_ = pause(ctx, wait) // whose end is the loop's
	}
	return nil
}

// pruner is the state of Prune. Its methods are called by one goroutine, but
// for those that say otherwise.
type pruner struct {
	w    *Worker
	rate int

	// every is the time between two rounds, next when the next one is due.
	every time.Duration
	next  time.Time
	hot   map[coherence.Index]hotIndex

	// mu guards the round, which the goroutines of the masters share.
	mu    sync.Mutex
	round round
}

// hotIndex is an index that is to be looked at before the next round.
type hotIndex struct{ seen, next time.Time }

type round struct {
	Pruned
	// small counts the small indexes, asked those of them whose memory is
	// known, and smallBytes that memory.
	small, asked int
	smallBytes   int64
	looks        []indexLook
}

// indexLook is what became of one index.
type indexLook struct {
	index            coherence.Index
	members, garbage int
}

func (w *Worker) newPruner() *pruner {
	return &pruner{w: w, rate: w.cfg.PruneRate, every: pruneFirst, hot: map[coherence.Index]hotIndex{}}
}

// turn does what is due at now and returns how long to wait for the next.
func (p *pruner) turn(ctx context.Context, now time.Time) (time.Duration, error) {
	started := time.Now()
	moved := func() time.Time { return now.Add(time.Since(started)) }
	if !now.Before(p.next) {
		done, err := p.all(ctx)
		if err != nil {
			p.next = moved().Add(p.every)
			return p.until(moved()), err
		}
		for _, l := range p.round.looks {
			p.heat(l, moved())
		}
		p.w.metrics.index(done)
		p.every = nextLook(p.every, done.Ratio(), pruneMost)
		p.next = moved().Add(p.every)
		p.w.log.DebugContext(ctx, "index pruned", "names", done.Names, "members", done.Members, "garbage", done.Garbage,
			"removed", done.Removed, "took", time.Since(started).Round(time.Millisecond), "next_in", p.every)
	}
	err := p.again(ctx, moved())
	return p.until(moved()), err
}

// patient is the time to wait after a turn: what failed is due all the time.
func (p *pruner) patient(wait time.Duration, err error) time.Duration {
	if err != nil {
		return max(wait, pruneLeast)
	}
	return wait
}

// until is how long it is from now to what is due next.
func (p *pruner) until(now time.Time) time.Duration {
	at := p.next
	for _, h := range p.hot {
		if h.next.Before(at) {
			at = h.next
		}
	}
	return max(at.Sub(now), 0)
}

// nextLook is the time to the next look, when the last one was every ago and
// found that share of garbage. Garbage comes at some rate, so that what is to be
// found grows with the time between: the time after which it is the target is in
// proportion. One look may be luck, so a step is bounded.
func nextLook(every time.Duration, ratio float64, most time.Duration) time.Duration {
	factor := 2.0
	if ratio > 0 {
		factor = math.Min(2, math.Max(0.25, pruneTarget/ratio))
	}
	return min(max(time.Duration(float64(every)*factor), pruneLeast), most)
}

// all is a round: every name on every master, the masters side by side.
func (p *pruner) all(ctx context.Context) (Pruned, error) {
	p.round = round{}
	complete, err := p.w.store.ScanIndexes(ctx, func(ctx context.Context, looked int, found []coherence.Index) error {
		started := time.Now()
		for chunk := range slices.Chunk(found, pruneNames) {
			if err := p.look(ctx, chunk); err != nil {
				return err
			}
		}
		return p.hold(ctx, started, looked)
	})
	r := &p.round
	r.Complete = complete
	if r.asked > 0 {
		r.Bytes += r.smallBytes * int64(r.small) / int64(r.asked)
	}
	return r.Pruned, err
}

// again looks at the indexes that are due before the next round.
func (p *pruner) again(ctx context.Context, now time.Time) error {
	var due []coherence.Index
	for i, h := range p.hot {
		if !h.next.After(now) {
			due = append(due, i)
		}
	}
	if len(due) == 0 {
		return nil
	}
	p.round = round{}
	for chunk := range slices.Chunk(due, pruneNames) {
		if err := p.look(ctx, chunk); err != nil {
			return err
		}
	}
	looks := p.round.looks
	for _, i := range due { // those that are gone have no look
		if !slices.ContainsFunc(looks, func(l indexLook) bool { return l.index == i }) {
			delete(p.hot, i)
		}
	}
	for _, l := range looks {
		p.heat(l, now)
	}
	return nil
}

// heat decides whether an index is looked at again before the next round.
func (p *pruner) heat(l indexLook, now time.Time) {
	h, known := p.hot[l.index]
	ratio := float64(l.garbage) / float64(max(l.members, 1))
	if l.garbage < pruneHotGarbage || ratio < pruneTarget/4 || !known && len(p.hot) >= pruneHot {
		delete(p.hot, l.index)
		return
	}
	before := p.every
	if known {
		before = now.Sub(h.seen)
	}
	p.hot[l.index] = hotIndex{seen: now, next: now.Add(nextLook(before, ratio, pruneMost))}
}

// hold waits until so many keys or members may have been looked at since
// started, and for at least as long as that took: a Redis that is slow is left
// alone for half of the time.
func (p *pruner) hold(ctx context.Context, started time.Time, looked int) error {
	took := time.Since(started)
	wait := max(time.Duration(float64(looked)/float64(p.rate)*float64(time.Second))-took, min(took, time.Second))
	return pause(ctx, wait)
}

// look prunes some indexes. Several goroutines may look, each at its own.
func (p *pruner) look(ctx context.Context, indexes []coherence.Index) error {
	started := time.Now()
	stats, err := p.w.store.IndexStats(ctx, indexes, func(i int) bool { return i%memoryOneIn == 0 })
	if err != nil {
		return err
	}
	var small, large []coherence.Index
	p.mu.Lock()
	for i, s := range stats {
		switch {
		case s.Members == 0:
			continue // purged meanwhile
		case s.Members <= pruneSmall:
			small = append(small, indexes[i])
			p.round.small++
			if s.Bytes > 0 {
				p.round.asked++
				p.round.smallBytes += s.Bytes
			}
		default:
			large = append(large, indexes[i])
		}
		p.round.Names++
		p.round.Members += s.Members
	}
	p.mu.Unlock()
	if err := p.hold(ctx, started, len(indexes)); err != nil {
		return err
	}
	if err := p.small(ctx, small); err != nil {
		return err
	}
	for _, i := range large {
		if err := p.large(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// small prunes indexes of few members, many in one call.
func (p *pruner) small(ctx context.Context, indexes []coherence.Index) error {
	if len(indexes) == 0 {
		return nil
	}
	pages, err := p.w.store.IndexPages(ctx, indexes, 2*pruneSmall)
	if err != nil {
		return err
	}
	for len(pages) > 0 {
		n, members := 0, 0
		for n < len(pages) && (n == 0 || members+len(pages[n].Members) <= prunePage) {
			members += len(pages[n].Members)
			n++
		}
		if _, err := p.pages(ctx, pages[:n]...); err != nil {
			return err
		}
		for i := range pages[:n] { // one that has grown meanwhile
			if pages[i].Next == 0 {
				continue
			}
			if _, err := p.enumerate(ctx, pages[i].Index(), pages[i].Next); err != nil {
				return err
			}
		}
		pages = pages[n:]
	}
	return nil
}

// large prunes one index, if a sample says that it is worth it.
func (p *pruner) large(ctx context.Context, index coherence.Index) error {
	stats, err := p.w.store.IndexStats(ctx, []coherence.Index{index}, func(int) bool { return true })
	if err != nil {
		return err
	}
	sample, err := p.w.store.SamplePage(ctx, index, pruneSample)
	if err != nil {
		return err
	}
	if len(sample.Members) == 0 {
		return nil
	}
	gone, err := p.pages(ctx, sample)
	if err != nil {
		return err
	}
	l := indexLook{index: index, members: stats[0].Members}
	l.garbage = l.members * gone / len(sample.Members)
	unseen := l.garbage - gone
	if float64(gone) > pruneTarget*float64(len(sample.Members)) {
		more, err := p.enumerate(ctx, index, 0)
		if err != nil {
			return err
		}
		l.garbage, unseen = gone+more, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round.Bytes += stats[0].Bytes
	p.round.Garbage += max(unseen, 0)
	p.round.looks = append(p.round.looks, l)
	return nil
}

// enumerate prunes one index from a cursor to its end, and returns how many
// members were dead.
func (p *pruner) enumerate(ctx context.Context, index coherence.Index, cursor uint64) (gone int, err error) {
	for {
		page, err := p.w.store.IndexPage(ctx, index, cursor, prunePage)
		if err != nil {
			return gone, err
		}
		n, err := p.pages(ctx, page)
		if err != nil {
			return gone, err
		}
		gone += n
		if cursor = page.Next; cursor == 0 {
			return gone, nil
		}
	}
}

// pages prunes pages and counts.
func (p *pruner) pages(ctx context.Context, pages ...coherence.Page) (gone int, err error) {
	started := time.Now()
	members := 0
	for i := range pages {
		members += len(pages[i].Members)
	}
	gone, removed, err := p.w.store.PrunePages(ctx, pages...)
	if err != nil {
		return 0, err
	}
	p.w.metrics.pruned.Add(float64(removed))
	p.mu.Lock()
	p.round.Garbage += gone
	p.round.Removed += removed
	p.mu.Unlock()
	return gone, p.hold(ctx, started, members)
}
