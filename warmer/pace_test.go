package warmer

import (
	"math/rand/v2"
	"testing"
	"time"
)

// loads runs loads through a pace, one after the other.
type paced struct {
	*pace
	now time.Time
}

func (p *paced) load(took time.Duration, failed bool) time.Duration {
	began := p.now
	p.now = p.now.Add(took)
	pause := p.done("k", began, took, failed)
	p.now = p.now.Add(pause)
	return pause
}

func newPaced(most int) *paced { return &paced{pace: newPace(most), now: time.Unix(1, 0)} }

func TestPaceSlowsDownAndRecovers(t *testing.T) {
	t.Parallel()
	p := newPaced(8)
	for range 50 {
		p.load(20*time.Millisecond, false)
	}
	if p.width() != 8 {
		t.Fatalf("width %d of a quiet database, want 8", p.width())
	}
	for range 40 {
		p.load(200*time.Millisecond, false)
	}
	if p.at > 0.5 {
		t.Fatalf("pace %.2f of a slow database, want less than one load half of the time", p.at)
	}
	if rest := p.rest(100 * time.Millisecond); rest < 100*time.Millisecond {
		t.Errorf("rest %v after a load of 100 ms at pace %.2f", rest, p.at)
	}
	for range 80 {
		p.load(20*time.Millisecond, false)
	}
	if p.width() != 8 {
		t.Errorf("width %d after the database recovered, want 8", p.width())
	}
}

// A database that has become slower for good is asked as before, some day.
func TestPaceTakesTheNewForUsual(t *testing.T) {
	t.Parallel()
	p := newPaced(4)
	for range 20 {
		p.load(20*time.Millisecond, false)
	}
	n := 0
	for slowed := false; !slowed || p.at < 4; n++ {
		p.load(200*time.Millisecond, false)
		slowed = slowed || p.at < 1
		if n > 2000 {
			t.Fatalf("pace %.2f after %d loads of the same length", p.at, n)
		}
	}
}

func TestPaceErrors(t *testing.T) {
	t.Parallel()
	p := newPaced(4)
	var last time.Duration
	for i := range 20 {
		pause := p.load(time.Millisecond, true)
		if pause < last || pause > pauseMost {
			t.Fatalf("pause %v after error %d, before %v", pause, i, last)
		}
		last = pause
	}
	if last != pauseMost || p.at != paceLeast {
		t.Errorf("pause %v at pace %v after twenty errors, want %v at %v", last, p.at, pauseMost, paceLeast)
	}
	p.load(time.Millisecond, false)
	if pause := p.load(time.Millisecond, true); pause > 2*pauseFirst {
		t.Errorf("pause %v after one error, want about %v", pause, pauseFirst)
	}
}

// Loads that ran beside a slow one were asked at the same pace: together they
// slow it down once.
func TestPaceSlowsDownOncePerRound(t *testing.T) {
	t.Parallel()
	p := newPaced(8)
	began := p.now
	for range 8 {
		p.done("k", began, time.Second, true)
	}
	if p.at != 4 {
		t.Errorf("pace %v after eight errors at a time, want 4", p.at)
	}
}

// Whatever happens the pace stays within its bounds.
func TestPaceBounds(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := newPaced(1 + r.IntN(16))
		for range 500 {
			pause := p.load(time.Duration(r.Int64N(int64(time.Second))), r.IntN(5) == 0)
			if p.at < paceLeast || p.at > p.most || p.width() < 1 || pause < 0 || pause > pauseMost {
				t.Fatalf("seed %d: pace %v of %v, pause %v", seed, p.at, p.most, pause)
			}
		}
	}
}
