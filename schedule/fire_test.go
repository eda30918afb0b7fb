package schedule

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// fireMost is how much later than it is due, and can be, anything may be fired.
const fireMost = time.Second

// shelf is a table of schedules in the time of a bubble, with outages.
type shelf struct {
	mu      sync.Mutex
	items   []*stored
	outages [][2]time.Time
	errors  int
}

// stored is one schedule.
type stored struct {
	at, due, fired time.Time
	times          int
}

var errAway = errors.New("the database is away")

// answer takes a moment, and errs in an outage.
func (s *shelf) answer(r *rand.Rand) error {
	time.Sleep(time.Duration(r.IntN(int(20 * time.Millisecond))))
	now := time.Now()
	for _, o := range s.outages {
		if !now.Before(o[0]) && now.Before(o[1]) {
			s.mu.Lock()
			s.errors++
			s.mu.Unlock()
			return errAway
		}
	}
	return nil
}

// worker is one process's look at a shelf.
type worker struct {
	*shelf
	r    *rand.Rand
	wake chan struct{}
}

func (w *worker) Fire(context.Context) (n int, err error) {
	if err := w.answer(w.r); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range w.items {
		if n < fireBatch && it.fired.IsZero() && !it.due.After(time.Now()) {
			it.fired = time.Now()
			it.times++
			n++
		}
	}
	return n, nil
}

func (w *worker) First(context.Context) (until time.Duration, found bool, err error) {
	if err := w.answer(w.r); err != nil {
		return 0, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range w.items {
		if d := time.Until(it.due); it.fired.IsZero() && (!found || d < until) {
			until, found = d, true
		}
	}
	return until, found, nil
}

// put is Store.Put, by one process.
func (w *worker) put(due time.Time, poll time.Duration) {
	w.mu.Lock()
	now := time.Now()
	w.items = append(w.items, &stored{at: now, due: due})
	w.mu.Unlock()
	if beforeLook(due.Sub(now), poll) {
		kick(w.wake)
	}
}

// possible is the first moment from which on a schedule could be fired: it was
// stored and due, and the database answered for as long as firing may take.
func (s *shelf) possible(it *stored) time.Time {
	at := it.due
	if it.at.After(at) {
		at = it.at
	}
	for _, o := range s.outages { // in their order
		if o[0].Before(at.Add(fireMost)) && o[1].After(at) && o[0].Before(it.fired) {
			at = o[1]
		}
	}
	return at
}

// What is due is fired within a second, by one of the workers, whatever the poll
// interval, who has stored it, who of them ends meanwhile, and also when the
// database was away: in the time of the program, which no busy machine stretches.
func TestFiredWithinASecond(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := &shelf{}
			begin := time.Now()
			for at := begin.Add(time.Duration(r.IntN(5)) * time.Second); at.Before(begin.Add(40*time.Second)) && seed%3 > 0; {
				end := at.Add(time.Duration(r.IntN(int(8 * time.Second))))
				s.outages = append(s.outages, [2]time.Time{at, end})
				at = end.Add(2*fireMost + time.Duration(r.IntN(int(5*time.Second))))
			}
			// One alone is told of all that it stores, and may look as seldom as it
			// likes; what others store is seen by looking.
			workers, poll := 1+r.IntN(3), time.Hour
			if workers > 1 {
				poll = nextMin + time.Duration(r.IntN(int(PollDefault)))
			}
			var all []*worker
			var done sync.WaitGroup
			var stops []context.CancelFunc
			for i := range workers {
				w := &worker{shelf: s, r: rand.New(rand.NewPCG(seed, uint64(i+2))), wake: make(chan struct{}, 1)}
				ctx, cancel := context.WithCancel(t.Context())
				all, stops = append(all, w), append(stops, cancel)
				done.Go(func() { fireDue(ctx, w, poll, w.wake, func(context.Context, error) {}) })
			}
			for range 60 {
				time.Sleep(time.Duration(r.IntN(int(time.Second))))
				due := time.Now().Add(time.Duration(r.IntN(int(6*time.Second))) - time.Second)
				all[r.IntN(workers)].put(due, poll)
				if r.IntN(20) == 0 && len(stops) > 1 { // it goes on to store, and its word reaches nobody
					stops[0]()
					stops = stops[1:]
				}
			}
			time.Sleep(30 * time.Second)
			for _, stop := range stops {
				stop()
			}
			done.Wait()
			for i, it := range s.items {
				if it.times != 1 {
					t.Fatalf("seed %d: schedule %d was fired %d times", seed, i, it.times)
				}
				if late := it.fired.Sub(s.possible(it)); late > fireMost || it.fired.Before(it.due) {
					t.Fatalf("seed %d: schedule %d was fired %s after it was due and %s after it could be; %d workers look every %s, outages %v",
						seed, i, it.fired.Sub(it.due), late, workers, poll, s.outages)
				}
			}
			if len(s.outages) > 0 && s.errors == 0 {
				t.Fatalf("seed %d: nobody has met an outage", seed)
			}
		})
	}
}

// What looks after the table may wait for Redis as long as it likes.
func TestServerFiresWhileItCanNotPrune(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.store("a")
	asked := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() {
		ran <- s.Run(ctx, func(ctx context.Context) (change.Position, error) {
			close(asked)
			<-ctx.Done()
			return change.Position{}, ctx.Err()
		})
	}()
	<-asked
	w.put(s, item("1", 0x10, w.now().Add(time.Hour), "one"))
	w.due()
	wantMessage(t, w, "one")
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
}
