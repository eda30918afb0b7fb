package warmer

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// feed shows odds n observations of which a share is of entries read again.
func (o *odds) feed(r *rand.Rand, n int, share float64) (changes int) {
	for range n {
		before := o.rewarm
		o.sample(r.Float64() < share)
		if o.rewarm != before {
			changes++
		}
	}
	return changes
}

func TestOddsFollowTheFormula(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		share     float64
		one, each time.Duration // 0: not measured
		want      bool
	}{
		{1, 0, 0, true}, {0.9, 0, 0, true}, {0.2, 0, 0, false}, {0, 0, 0, false},
		// A load of many costs a hundredth: it pays though few are read.
		{0.2, time.Millisecond, 10 * time.Microsecond, true},
		{0, time.Millisecond, 10 * time.Microsecond, false},
		{0.2, time.Millisecond, time.Millisecond, false},
		{0.9, time.Millisecond, time.Millisecond, true},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, 2))
			o := &odds{}
			for range 20 {
				o.cost(1, test.one)
			}
			for range 40 {
				o.cost(100, 100*test.each)
			}
			o.feed(r, 400, test.share)
			if o.rewarm != test.want {
				t.Errorf("chosen %v, want rewarm %v", o, test.want)
			}
			if text := o.String(); !strings.HasPrefix(text, map[bool]string{true: "rewarm: ", false: "delete: "}[test.want]) {
				t.Errorf("said %q", text)
			}
		})
	}
}

// More reads never speak against a rewarm, nor a cheaper load.
func TestOddsAreMonotone(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		reads := make([]bool, 20+r.IntN(200))
		share := r.Float64()
		for i := range reads {
			reads[i] = r.Float64() < share
		}
		one := time.Duration(1 + r.IntN(1e6))
		rows := 2 + r.IntN(500)
		many := time.Duration(1 + r.IntN(1e7))
		run := func(reads []bool, many time.Duration) *odds {
			o := &odds{}
			o.cost(1, one)
			for range 40 {
				o.cost(rows, many)
			}
			for _, read := range reads {
				o.sample(read)
			}
			return o
		}
		base := run(reads, many)
		more := append([]bool(nil), reads...)
		for i := range more {
			more[i] = more[i] || r.IntN(3) == 0
		}
		if o := run(more, many); o.chance() < base.chance() {
			t.Errorf("seed %d: more reads, and a chance of %v after %v", seed, o.chance(), base.chance())
		}
		if o := run(reads, many/2+1); o.price() > base.price() {
			t.Errorf("seed %d: a cheaper load, and a price of %v after %v", seed, o.price(), base.price())
		}
		if p, c := base.price(), base.chance(); p < 0 || p > 1.0/autoReader || c < 0 || c > 1 {
			t.Errorf("seed %d: price %v, chance %v", seed, p, c)
		}
	}
}

// The rule against what it is derived from: the costs of many periods between two
// invalidations, added up. Where one choice is the dearer by more than the margin
// the rule has the other, whatever was done before; and what speaks for a rewarm
// never ends one.
func TestBetterIsCheaper(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	decided := 0
	for range 3000 {
		p, cm, cu := r.Float64(), 0.1+r.Float64(), 0.01+r.Float64()
		const periods = 1000
		deleted, rewarmed, reads := 0.0, 0.0, 0
		for range periods {
			rewarmed += cu
			if r.Float64() < p {
				deleted += cm
				reads++
			}
		}
		chance, price := float64(reads)/periods, cu/cm
		for _, now := range []bool{false, true} {
			got := better(chance, price, now)
			switch {
			case rewarmed > 1.001*autoMargin*deleted && got, deleted > 1.001*autoMargin*rewarmed && !got:
				t.Errorf("p %.3f, cu %.3f, cm %.3f, rewarming now %v: chosen rewarm %v; deleting costs %.1f, rewarming %.1f", chance, cu, cm, now, got, deleted, rewarmed)
			case rewarmed > autoMargin*deleted, deleted > autoMargin*rewarmed:
				decided++
			case got != now:
				t.Errorf("p %.3f, cu %.3f, cm %.3f: changed from rewarming %v for less than the margin", chance, cu, cm, now)
			}
			more, cheaper := min(1, chance+r.Float64()/10), price*r.Float64()
			if got && (!better(more, price, now) || !better(chance, cheaper, now) || !better(chance, price, true)) {
				t.Errorf("p %.3f, cu/cm %.3f: rewarmed, but not with p %.3f, with cu/cm %.3f, or when it is already", chance, price, more, cheaper)
			}
		}
	}
	if decided < 3000 {
		t.Errorf("only %d of 6000 choices lay beyond the margin", decided)
	}
}

// A class that stands at the margin does not swing; one whose readers leave is
// noticed within the memory.
func TestOddsHaveHysteresisAndForget(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 4))
		o := &odds{}
		o.feed(r, 200, 1)
		if changes := o.feed(r, 2000, 0.5); !o.rewarm && changes > 1 || changes > 40 {
			t.Errorf("seed %d: %d changes of the choice in 2000 observations at the margin", seed, changes)
		}
		o.feed(r, 400, 1)
		if !o.rewarm {
			t.Fatalf("seed %d: everything is read and not rewarmed: %v", seed, o)
		}
		o.feed(r, 2*autoMemory, 0)
		if o.rewarm {
			t.Errorf("seed %d: nobody reads any more: %v", seed, o)
		}
	}
	// One choice lasts for a while whatever is seen.
	o := &odds{}
	for range autoLeast {
		o.sample(true)
	}
	if !o.rewarm {
		t.Fatal("not chosen after as many observations as it takes")
	}
	for range autoLeast - 1 {
		o.sample(false)
	}
	if !o.rewarm {
		t.Error("chosen anew at once")
	}
}

// simulate lets keys be invalidated and read, and counts the rewarms.
func simulate(c *chooser, r *rand.Rand, rounds int, share float64) (rewarmed, asked int) {
	there := map[string]bool{}
	for range rounds {
		name := fmt.Sprint("k", r.IntN(200))
		asked++
		rewarm, _ := c.invalidated("k", name, there[name])
		if rewarm {
			rewarmed++
		}
		there[name] = rewarm || r.Float64() < share
	}
	return rewarmed, asked
}

// Entries that are rewarmed are always there: only those left to readers may be
// asked whether anybody reads.
func TestChooserSeesThroughItsOwnRewarms(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 7))
	c := newChooser()
	c.random = r.IntN
	simulate(c, r, 20_000, 0.95)
	if n, of := simulate(c, r, 2000, 0.95); float64(n) < 0.85*float64(of) || n == of {
		t.Errorf("%d of %d rewarmed where nearly all are read, want most and not all", n, of)
	}
	// The readers leave.
	simulate(c, r, 20_000, 0.02)
	if n, of := simulate(c, r, 2000, 0.02); n > 0 {
		t.Errorf("%d of %d rewarmed that nobody reads", n, of)
	}
	if c.chosen("k") || c.chosen("other") {
		t.Error("chosen")
	}
}

func TestChooserIsBounded(t *testing.T) {
	t.Parallel()
	c := newChooser()
	for i := range 3 * autoSamples {
		c.invalidated("k", fmt.Sprint(i), false)
	}
	if len(c.left) > autoSamples || len(c.order) > autoSamples {
		t.Errorf("%d and %d remembered, the bound is %d", len(c.left), len(c.order), autoSamples)
	}
	// The same few again and again do not push each other out of it.
	c = newChooser()
	for i := range 10 * autoSamples {
		c.invalidated("k", fmt.Sprint(i%10), i%2 == 0)
	}
	if len(c.left) > 10 || len(c.order) > autoSamples {
		t.Errorf("%d and %d remembered of ten entries", len(c.left), len(c.order))
	}
}

// What is measured of a class shows, and that it is left to readers at first.
func TestChooserShowsWhatItMeasures(t *testing.T) {
	t.Parallel()
	c, m := newChooser(), NewMetrics(nil)
	shows := func(want [3]float64) {
		t.Helper()
		c.measured(m)
		got := [3]float64{testutil.ToFloat64(m.auto.WithLabelValues("a")), testutil.ToFloat64(m.read.WithLabelValues("a")), testutil.ToFloat64(m.cost.WithLabelValues("a"))}
		if got != want {
			t.Errorf("shown %v, want %v", got, want)
		}
	}
	c.invalidated("a", "k", false)
	shows([3]float64{0, 0, 1.0 / autoReader})
	for range autoLeast {
		c.invalidated("a", "k", true)
	}
	c.cost("a", 1, 8*time.Millisecond)
	shows([3]float64{1, 1, 1.0 / autoReader})
}
