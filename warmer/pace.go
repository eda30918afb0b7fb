package warmer

import "time"

// The bounds of a pace, and how it moves.
const (
	// paceLeast is the share of time that a database which is in trouble is
	// still asked in.
	paceLeast = 1.0 / 16
	// A load is slow that takes paceSlow times what such loads take, and
	// paceSlack more: short ones vary for reasons that are not the database's.
	paceSlow  = 2
	paceSlack = 5 * time.Millisecond
	// What a slow load and a failed one leave of the pace, and what a good one
	// adds to it in a whole round of loads.
	paceAfterSlow  = 0.7
	paceAfterError = 0.5
	// The pause after the first of several errors in a row, and the longest.
	pauseFirst = 50 * time.Millisecond
	pauseMost  = 5 * time.Second
)

// pace is how hard the database may be asked: so many loads at a time, or, below
// one, the share of time in which there is one at all. It grows by one with each
// round of loads that take as long as usual, and shrinks by a factor when they
// take longer or fail: additive increase, multiplicative decrease, with the
// latency as the signal (Chiu and Jain 1989; the latency's own floor as what is
// usual is that of TCP Vegas, Brakmo and Peterson 1994). It knows no clock, and
// is not safe for concurrent use.
type pace struct {
	at, most float64
	usual    map[string]*usual
	// since is when it was last slowed down: what was asked before says nothing
	// of the pace since.
	since  time.Time
	errors int
}

// usual is how long loads of one kind take: the least lately.
type usual struct{ floor, recent time.Duration }

func newPace(most int) *pace {
	return &pace{at: float64(most), most: float64(most), usual: map[string]*usual{}}
}

// width is how many loads may run at a time.
func (p *pace) width() int { return max(1, int(p.at)) }

// rest is how long nothing is to be asked after a load that took so long.
func (p *pace) rest(took time.Duration) time.Duration {
	if p.at >= 1 {
		return 0
	}
	return min(time.Duration(float64(took)*(1/p.at-1)), pauseMost)
}

// done takes a load of a kind that began at a time and is over now. It returns
// how long nothing is to be asked.
func (p *pace) done(kind string, began time.Time, took time.Duration, failed bool) (pause time.Duration) {
	if failed {
		if began.After(p.since) {
			p.errors++
			p.slower(paceAfterError, began.Add(took))
		}
		return max(p.rest(took), min(pauseFirst<<min(max(0, p.errors-1), 10), pauseMost))
	}
	p.errors = 0
	u := p.usual[kind]
	if u == nil {
		u = &usual{floor: took, recent: took}
		p.usual[kind] = u
	}
	u.note(took)
	switch {
	case u.recent <= paceSlow*u.floor+paceSlack:
		p.at = min(p.at+1/max(1, p.at), p.most)
	case began.After(p.since):
		p.slower(paceAfterSlow, began.Add(took))
	}
	return p.rest(took)
}

func (p *pace) slower(factor float64, now time.Time) {
	p.at = max(p.at*factor, paceLeast)
	p.since = now
}

// note takes a sample. The floor follows a smaller one at once, and a greater
// one slowly, at most one part in 64 for each: a database that has become slower
// for good is asked as before after some hundred loads.
func (u *usual) note(took time.Duration) {
	u.recent += (took - u.recent) / 4
	if took < u.floor {
		u.floor = took
	} else {
		u.floor += min((took-u.floor)/16, u.floor/64)
	}
}
