package invalidator

import (
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// history remembers what one partition has applied, for as long as a replica
// of Redis may lag: when a master is replaced by a replica that missed writes,
// everything from the replica's watermark on is applied again.
//
// A batch is put in before it is applied. Put in afterwards, a redo between
// the two would miss it, although the old master had taken it.
//
// It is safe for concurrent use: any partition's goroutine may do the redo.
type history struct {
	mu    sync.Mutex
	keep  time.Duration
	most  int
	bytes int
	// batches[head:] are remembered.
	batches []*applied
	head    int
	free    []*applied
	// low is the greatest V of what is forgotten (or was applied by an earlier
	// owner): only a watermark above it is within the history.
	low change.Position
	// top is the greatest V so far.
	top change.Position
}

// applied is one batch: its keys, in one piece of memory, and the classes that
// it raised.
type applied struct {
	at     time.Time
	v      change.Position
	names  []byte
	items  []appliedKey
	raised []string
}

type appliedKey struct {
	end    uint32
	x      change.Position
	action coherence.Action
	plain  bool
}

// appliedKeySize is what an item costs besides its name.
const appliedKeySize = 32

func newHistory(keep time.Duration, most int, low change.Position) *history {
	return &history{keep: keep, most: most, low: low, top: low}
}

// put remembers a batch whose marks end at v.
func (h *history) put(now time.Time, v change.Position, keys []coherence.Invalidation, raised []string) {
	if len(keys) == 0 && len(raised) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var b *applied
	if n := len(h.free); n > 0 {
		b, h.free = h.free[n-1], h.free[:n-1]
	} else {
		b = &applied{}
	}
	// A batch may end below the one before: one of dead letters says nothing
	// of v, and a reader that starts again repeats lower ones. A watermark
	// written before it was applied does not promise it either.
	v = v.Max(h.top)
	h.top = v
	b.at, b.v = now, v
	b.names, b.items = b.names[:0], b.items[:0]
	b.raised = append(b.raised[:0], raised...)
	for i := range keys {
		k := &keys[i]
		b.names = append(b.names, k.Name...)
		b.items = append(b.items, appliedKey{end: uint32(len(b.names)), x: k.X, action: k.Action, plain: k.Plain})
	}
	h.batches = append(h.batches, b)
	h.bytes += b.size()
	for h.head < len(h.batches)-1 {
		old := h.batches[h.head]
		if h.bytes <= h.most && now.Sub(old.at) <= h.keep {
			break
		}
		h.low = h.low.Max(old.v)
		h.bytes -= old.size()
		if len(h.free) < historyFree && cap(old.names) <= h.most/historyFree {
			h.free = append(h.free, old)
		}
		h.batches[h.head] = nil
		h.head++
	}
	if 2*h.head >= len(h.batches) {
		n := copy(h.batches, h.batches[h.head:])
		clear(h.batches[n:])
		h.batches, h.head = h.batches[:n], 0
	}
	if h.bytes > h.most {
		// One batch larger than all the memory: it is not remembered.
		h.low, h.bytes, h.head, h.batches = h.low.Max(v), 0, 0, h.batches[:0]
	}
}

// historyFree is how many batches' memory is kept for reuse.
const historyFree = 16

func (b *applied) size() int {
	n := len(b.names) + appliedKeySize*len(b.items)
	for _, c := range b.raised {
		n += len(c)
	}
	return n
}

// since returns copies of everything that was applied with or after watermark
// w, and the classes that were raised; ok is false if w lies below the history.
//
// Batches that end at w itself are included: several batches may end at the
// same V while a commit is held, and the watermark may be the first one's.
func (h *history) since(w change.Position) (keys []coherence.Invalidation, raised []string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.low.Less(w) {
		return nil, nil, false
	}
	for _, b := range h.batches[h.head:] {
		if b.v.Less(w) {
			continue
		}
		names, start := string(b.names), uint32(0)
		for _, it := range b.items {
			keys = append(keys, coherence.Invalidation{Name: names[start:it.end], X: it.x, Action: it.action, Plain: it.plain})
			start = it.end
		}
		raised = append(raised, b.raised...)
	}
	return keys, raised, true
}
