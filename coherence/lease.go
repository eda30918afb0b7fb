package coherence

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// openHolder is the holder of a lease that nobody needs; see OpenLease.
var openHolder = [8]byte{255, 255, 255, 255, 255, 255, 255, 255}

// FreeLease is what a holder leaves who gave up: the next one who needs the
// value takes it. Who has a value and only wants a younger one does not before
// the given time, since the load has just failed.
func FreeLease(until time.Time) Lease { return Lease{Until: max(1, until.UnixMicro())} }

// IsFree reports whether it is a FreeLease.
func (l Lease) IsFree() bool { return l.Holder == [8]byte{} && l.Until > 0 }

// OpenLease is what a holder leaves whose value is not to be cached: until the
// given time everybody loads without a lease, because waiting for each other
// would put their loads in a row and save none.
func OpenLease(until time.Time) Lease {
	return Lease{Holder: openHolder, Until: until.UnixMicro()}
}

// IsOpen reports whether it is an OpenLease, over or not.
func (l Lease) IsOpen() bool { return l.Holder == openHolder }

func (l Lease) bytes() []byte {
	b := make([]byte, 0, len(l.Holder)+8)
	return binary.BigEndian.AppendUint64(append(b, l.Holder[:]...), uint64(l.Until))
}

// LeaseRequest replaces the lease of an entry. It never changes the entry's
// incarnation, so whoever held the lease before may still fill: leases control
// the herd, tickets what is true.
type LeaseRequest struct {
	// Name and Plain are those of the ticket.
	Name  string
	Plain bool
	// Incarnation must be the entry's; zero stands for any, for a holder who
	// gives back.
	Incarnation Incarnation
	// Seen must be the entry's lease; zero is none.
	Seen, Next Lease
}

// Lease replaces the lease of an entry and reports whether it did: false says
// that the entry is gone, or another, or that somebody was faster. Of several
// who have seen the same lease exactly one gets true. A true with an
// Incarnation is as good as the answer of Begin: the ticket of that incarnation
// is valid for what is read from now on. It blocks for one round trip.
func (s *Store) Lease(ctx context.Context, r LeaseRequest) (bool, error) {
	done, err := s.LeaseAll(ctx, []LeaseRequest{r})
	if err != nil {
		return false, err
	}
	return done[0], nil
}

// LeaseAll is Lease for many entries at once; the answers are in the order of
// the requests. After an error each of them may or may not be replaced.
func (s *Store) LeaseAll(ctx context.Context, reqs []LeaseRequest) ([]bool, error) {
	units := make([]unit, len(reqs))
	cmds := make([]*redis.IntCmd, len(reqs))
	for i := range reqs {
		r := &reqs[i]
		key := r.Name
		if r.Plain {
			key = s.layout.Ticket(r.Name)
		}
		var want []byte
		if r.Incarnation != (Incarnation{}) {
			want = r.Incarnation[:]
		}
		cmds[i] = redis.NewIntCmd(ctx, s.evalArgs(scriptLease, "", []string{key}, r.Seen.bytes(), r.Next.bytes(), want)...)
		units[i] = unit{key: key, cmds: []redis.Cmder{cmds[i]}}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("replace lease: %w", err)
	}
	done := make([]bool, len(reqs))
	for i, c := range cmds {
		n, err := c.Result()
		if err != nil {
			return nil, fmt.Errorf("replace lease of %q: %w", reqs[i].Name, err)
		}
		done[i] = n == 1
	}
	return done, nil
}
