package warmer

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// The bounds of the leases that are taken for loads, those of clients.
const (
	leaseMin     = 200 * time.Millisecond
	leaseMax     = 10 * time.Second
	leaseUnknown = 2 * time.Second
	// leaseLost is when an entry is looked at again whose lease somebody else
	// got a moment before.
	leaseLost = 20 * time.Millisecond
	// giveBackWait bounds the return of leases when everything else is over.
	giveBackWait = time.Second
)

// leases are those of one process. They lose nothing but time when they are
// wrong: who may fill is decided by tickets.
type leases struct {
	holder [8]byte
	mu     *sync.Mutex
	took   map[string]time.Duration // the greatest lately, by class
}

func newLeases() leases {
	l := leases{mu: &sync.Mutex{}, took: map[string]time.Duration{}}
	_, _ = rand.Read(l.holder[:]) // never errs
	return l
}

func (l *leases) note(class string, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	had := l.took[class]
	l.took[class] = max(took, had-(had-took)/8)
}

// next is a lease that begins now: three times the load.
func (l *leases) next(class string) coherence.Lease {
	l.mu.Lock()
	took := l.took[class]
	l.mu.Unlock()
	d := leaseUnknown
	if took > 0 {
		d = min(max(3*min(took, leaseMax), leaseMin), leaseMax)
	}
	return coherence.Lease{Holder: l.holder, Until: time.Now().Add(d).UnixMicro()}
}

// left is how long a lease has to go by this machine's clock; one that would go
// longer than any can is over.
func left(l coherence.Lease) time.Duration {
	d := time.Until(time.UnixMicro(l.Until))
	if d > leaseMax {
		return 0
	}
	return d
}

// begin takes the tickets, and leaves out what need not be loaded.
func (b *batch) begin(ctx context.Context) error {
	w, class := b.w, b.class
	versions := class.Versions
	if len(versions) == 0 {
		versions = []int{1}
	}
	plain := class.Mode == rules.Plain
	var requests []coherence.BeginRequest
	var tickets []ticket
	for i, name := range b.names {
		if b.fates[i].kind == fateBehind {
			continue
		}
		for _, v := range versions {
			r := coherence.BeginRequest{Name: w.cfg.Store.Layout().Versioned(name, uint32(v)), Known: b.known, Plain: plain}
			if b.how.leases {
				r.Lease = w.leases.next(class.Name)
			}
			requests = append(requests, r)
			tickets = append(tickets, ticket{at: i, version: v, lease: r.Lease})
		}
	}
	if len(requests) == 0 {
		return nil
	}
	begun, err := w.cfg.Store.BeginAll(ctx, requests)
	if err != nil {
		return err
	}
	there, err := b.there(ctx, begun, plain)
	if err != nil {
		return err
	}
	var claims []claim
	kept := tickets[:0]
	for i := range begun {
		t, begun := tickets[i], &begun[i]
		t.Ticket = begun.Ticket
		h := &begun.Header
		switch {
		case there[i], b.how.IfAbsent && !plain && h.State == coherence.StateValue && h.Generation == b.known.Generation && !b.how.expires(h):
			b.result.Present++
			b.fates[t.at].worsen(fatePresent, "")
			continue
		case begun.Mine:
		case !b.how.leases:
			t.lease = coherence.Lease{}
		case h.Lease == (coherence.Lease{}) && h.State == coherence.StateEmpty, h.Lease.IsOpen() && left(h.Lease) > 0:
			// Somebody loads who knows nothing of leases, or whose value is not
			// to be cached: nobody waits for anybody.
			t.lease = coherence.Lease{}
		case h.Lease.Holder != w.leases.holder && !h.Lease.IsFree() && left(h.Lease) > 0:
			b.leased(&t, left(h.Lease))
			continue
		default:
			claims = append(claims, claim{at: len(kept), seen: h.Lease})
		}
		kept = append(kept, t)
	}
	b.tickets = kept
	return b.claim(ctx, claims)
}

// there looks for the values of plain entries whose ticket somebody else has
// taken: of them nothing is known but that. With IfAbsent it looks for all: a
// ticket of a value that is there may have expired.
func (b *batch) there(ctx context.Context, begun []coherence.Begun, plain bool) ([]bool, error) {
	there := make([]bool, len(begun))
	if !plain || !b.how.leases && !b.how.IfAbsent {
		return there, nil
	}
	var names []string
	var of []int
	for i := range begun {
		if !begun[i].Mine || b.how.IfAbsent {
			names, of = append(names, begun[i].Ticket.Name), append(of, i)
		}
	}
	if len(names) == 0 {
		return there, nil
	}
	found, err := b.w.cfg.Store.Exists(ctx, names)
	for j := range found {
		there[of[j]] = found[j]
	}
	return there, err
}

// claim is a lease that is over, and may be taken: at is the ticket's index.
type claim struct {
	at   int
	seen coherence.Lease
}

func (b *batch) claim(ctx context.Context, claims []claim) error {
	if len(claims) == 0 {
		return nil
	}
	requests := make([]coherence.LeaseRequest, len(claims))
	for i, c := range claims {
		t := &b.tickets[c.at]
		requests[i] = coherence.LeaseRequest{
			Name: t.Name, Plain: t.Plain, Incarnation: t.Incarnation, Seen: c.seen, Next: t.lease,
		}
	}
	won, err := b.w.cfg.Store.LeaseAll(ctx, requests)
	if err != nil {
		return err
	}
	lost := map[int]bool{}
	for i, c := range claims {
		if !won[i] {
			lost[c.at] = true
		}
	}
	kept := b.tickets[:0]
	for i, t := range b.tickets {
		if lost[i] {
			b.leased(&t, leaseLost)
			continue
		}
		kept = append(kept, t)
	}
	b.tickets = kept
	return nil
}

func (b *batch) leased(t *ticket, wait time.Duration) {
	f := &b.fates[t.at]
	f.worsen(fateLeased, "")
	f.wait = max(f.wait, wait)
}

// giveBack ends the leases of what was not stored, for those who wait for them.
// It goes on when ctx is over, for a moment.
func (b *batch) giveBack(ctx context.Context) {
	var requests []coherence.LeaseRequest
	for i := range b.tickets {
		if t := &b.tickets[i]; !t.stored && t.lease != (coherence.Lease{}) {
			requests = append(requests, coherence.LeaseRequest{
				Name: t.Name, Plain: t.Plain, Seen: t.lease, Next: coherence.FreeLease(time.Time{}),
			})
		}
	}
	if len(requests) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackWait)
	defer cancel()
	if _, err := b.w.cfg.Store.LeaseAll(ctx, requests); err != nil {
		b.w.cfg.Logger.DebugContext(ctx, "leases are not given back, and end by themselves", "class", b.class.Name, "error", err)
	}
}
