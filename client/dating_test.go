package client

import (
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// what a look found, when it began, and how far w was dated after it.
type datingStep struct {
	began time.Duration
	proof coherence.Proof
	w     uint64
	since time.Duration
}

func TestDating(t *testing.T) {
	t.Parallel()
	answered := func(life string, pulse, of, answer uint64) coherence.Proof {
		return coherence.Proof{Life: life, Pulse: pulse, Dated: true, Of: of, Answer: at(answer)}
	}
	for name, steps := range map[string][]datingStep{
		"an answer to a pulse that was there before says nothing": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("a", 5, 5, 100), w: 200},
		},
		"one to a later pulse dates": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("a", 7, 6, 110), w: 200, since: 10},
			{began: 30, proof: answered("a", 9, 7, 120), w: 200, since: 10}, // 7 was there at 20
			{began: 40, proof: answered("a", 9, 8, 130), w: 200, since: 20},
		},
		"the last moment at which a pulse was not there": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("a", 5, 4, 100), w: 200},
			{began: 30, proof: answered("a", 6, 6, 100), w: 200, since: 20},
		},
		"w has to cover the answer": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 100},
			{began: 20, proof: answered("a", 6, 6, 100), w: 100},
			{began: 30, proof: answered("a", 7, 7, 110), w: 101, since: 10},
			{began: 40, proof: answered("a", 8, 8, 120), w: 115, since: 20},
			{began: 50, proof: answered("a", 9, 9, 130), w: 115, since: 20},
		},
		"an idle database": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 101},
			{began: 20, proof: answered("a", 6, 6, 100), w: 101, since: 10},
			{began: 30, proof: answered("a", 7, 7, 100), w: 101, since: 20},
		},
		"nobody sends pulses any more": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("a", 6, 6, 100), w: 200, since: 10},
			{began: 30, proof: answered("a", 6, 6, 100), w: 200, since: 10},
		},
		"the primary does not answer": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("a", 6, 6, 100), w: 200, since: 10},
			{began: 30, proof: answered("a", 9, 6, 100), w: 200, since: 10},
		},
		"numbers of another life are not compared": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: answered("b", 9, 8, 110), w: 200},
			{began: 30, proof: answered("b", 10, 10, 110), w: 200, since: 20},
			{began: 40, proof: answered("a", 400, 399, 120), w: 200, since: 20},
		},
		"a count that went back begins anew": {
			{began: 10, proof: answered("a", 50, 4, 100), w: 200},
			{began: 20, proof: answered("a", 3, 0, 100), w: 200},
			{began: 30, proof: answered("a", 2, 0, 100), w: 200},
			{began: 40, proof: answered("a", 4, 3, 100), w: 200, since: 30},
		},
		"a look without a life changes nothing": {
			{began: 10, proof: answered("a", 5, 4, 100), w: 200},
			{began: 20, proof: coherence.Proof{Dated: true}, w: 200},
			{began: 30, proof: answered("a", 6, 6, 100), w: 200, since: 10},
		},
	} {
		var d dating
		for i, s := range steps {
			d.look(&s.proof, s.began)
			if got := d.since(at(s.w)); got != s.since {
				t.Errorf("%s: step %d: dated %v, want %v", name, i, got, s.since)
			}
		}
	}
}

// However many looks, little is remembered, and a w that stopped long ago is
// not dated later than when it stopped.
func TestDatingIsBounded(t *testing.T) {
	t.Parallel()
	var d dating
	for i := range uint64(10_000) {
		d.look(&coherence.Proof{Life: "a", Pulse: i, Dated: i > 0, Of: i, Answer: at(100 + i)}, time.Duration(10*i+1))
	}
	if n, m := len(d.pulses), len(d.answers); n > datesMax || m > datesMax {
		t.Errorf("%d pulses and %d answers are remembered", n, m)
	}
	if got := d.since(at(100 + 9_999)); got != 10*9_997+1 {
		t.Errorf("dated %v", got)
	}
	if got := d.since(at(100 + 9_000)); got > 10*9_000 {
		t.Errorf("a watermark of look 9000 is dated %v", got)
	}
}
