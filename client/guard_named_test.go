package client

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// emptied is a Redis that came back without its control data to workers that
// were started anew: everything is raised, and nobody knows any more which keys
// are names. No heartbeat has come yet.
func (p *pages) emptied() {
	p.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: p.addr})
	defer rdb.Close()
	p.must(rdb.Del(p.ctx(), p.worker.Layout().Control("named")).Err())
	_, err := p.worker.Raise(p.ctx(), coherence.RaiseRequest{Cause: "empty", Reason: change.ReasonSource, Classes: []string{"*"}, X: at(100)})
	p.must(err)
	p.must(p.worker.RestoreControl(p.ctx(), &coherence.ControlState{V: p.v}))
}

// served reports whether the page in Redis is of the generation in force.
func (p *pages) served() bool {
	p.t.Helper()
	ctl, err := p.worker.Control(p.ctx(), "page")
	p.must(err)
	h, ok := p.header("page:1")
	return ok && h.Generation == ctl.Known("page").Generation
}

// What a heartbeat has echoed is worth nothing once control has lost it: a page
// that trusts in it is cached for good, because no worker purges what it was made
// from. One that hears and one that hears nothing read the generations of after
// the loss, and with them the names.
func TestNamesGoWithTheirGeneration(t *testing.T) {
	t.Parallel()
	for name, deaf := range map[string]bool{"live": false, "blind": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPages(t, hooks{})
			load := p.loader(nil, "item:1")
			if !p.read(load) {
				t.Fatal("a page is not cached although the names of its parts were echoed")
			}
			if deaf {
				p.deafen(p.c)
			}
			p.emptied()
			if !deaf {
				p.live(p.c)
			}
			p.read(load)
			if p.served() {
				t.Error("a page was cached under names that control has lost")
			}
			if deaf {
				return
			}
			p.want("refused", p.c.Stats().Classes["page"].Refused["unnamed"], uint64(1))
			p.at(200) // the read has named the class again, and this echoes it
			p.read(load)
			if !p.served() {
				t.Errorf("the page is not cached again after the echo: %v", p.c.Stats().Classes["page"].Refused)
			}
			// And a worker purges it by its part.
			p.change("item:1", 210)
			if p.served() {
				t.Error("the page outlives its part")
			}
		})
	}
}
