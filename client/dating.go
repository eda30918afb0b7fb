package client

import (
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// dating tells how old a watermark is, from what the workers answer to their
// own pulses (see coherence.Pulse). It is pure: moments are those of Client.now.
//
// A pulse with a number that was not reached when this Client looked was sent
// after the look began. The worker reads the primary's insert position after
// that; so what was visible when the look began lies below the position that is
// the pulse's answer, and has been applied where the watermark covers it.
type dating struct {
	life    string
	last    uint64
	pulses  []pulseSeen
	answers []datedPosition
}

// pulseSeen: those with greater numbers were sent after the moment.
type pulseSeen struct {
	number uint64
	at     time.Duration
}

// datedPosition: where a master's watermark covers the position, everything that
// was visible at the moment has been applied.
type datedPosition struct {
	position change.Position
	since    time.Duration
}

// datesMax bounds what is remembered.
const datesMax = 64

// look takes what was found by a look that began at a moment.
func (d *dating) look(p *coherence.Proof, began time.Duration) {
	if p.Life == "" {
		return
	}
	if p.Life != d.life || p.Pulse < d.last {
		// Another server counts, or one that lost its data: its numbers say
		// nothing about those before.
		d.pulses = d.pulses[:0]
	}
	d.life, d.last = p.Life, p.Pulse
	if p.Dated && p.Of > 0 {
		for i := len(d.pulses) - 1; i >= 0; i-- {
			if d.pulses[i].number < p.Of {
				d.answer(datedPosition{position: p.Answer, since: d.pulses[i].at})
				break
			}
		}
	}
	if n := len(d.pulses); n > 0 && d.pulses[n-1].number == p.Pulse {
		d.pulses[n-1].at = began // none was sent in between
	} else {
		d.pulses = thin(append(d.pulses, pulseSeen{number: p.Pulse, at: began}))
	}
}

func (d *dating) answer(a datedPosition) {
	if n := len(d.answers); n > 0 && d.answers[n-1].since >= a.since {
		return
	}
	d.answers = thin(append(d.answers, a))
}

// since is the moment up to which everything that was visible has been applied
// by a master whose watermark is w; 0 if that is unknown.
func (d *dating) since(w change.Position) time.Duration {
	for i := len(d.answers) - 1; i >= 0; i-- {
		if w.Covers(d.answers[i].position) {
			return d.answers[i].since
		}
	}
	return 0
}

// thin leaves out every second of the older half when there are too many: the
// past is told in longer steps.
func thin[E any](s []E) []E {
	if len(s) <= datesMax {
		return s
	}
	half := len(s) / 2
	kept := s[:0]
	for i := range s {
		if i >= half || i%2 == 0 {
			kept = append(kept, s[i])
		}
	}
	return kept
}
