package coherence

import (
	"context"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
)

func (b *bench) beatWith(p Pulse) {
	b.t.Helper()
	must(b.t, b.Heartbeat(b.ctx(), Message{V: at(100), W: at(90)}, p))
}

func (b *bench) prove() *Proof {
	b.t.Helper()
	p, err := b.Prove(b.ctx())
	must(b.t, err)
	must(b.t, p.Err)
	return p
}

// An answer stands beside the number of the pulse that it answers, and only if
// no other pulse was sent in between.
func TestPulseIsAnswered(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		if p := b.prove(); p.Life != "" || p.Dated {
			t.Errorf("before the first pulse: %+v", p)
		}
		first := NewPulse()
		b.beatWith(first)
		b.beatWith(Pulse{}) // a heartbeat without one changes nothing
		p := b.prove()
		if p.Pulse != 1 || p.Life == "" || p.Dated {
			t.Errorf("after a pulse: %+v", p)
		}
		second := NewPulse()
		second.Answer, second.Of = at(70), first.Token
		b.beatWith(second)
		if p = b.prove(); p.Pulse != 2 || !p.Dated || p.Answer != at(70) || p.Of != 1 {
			t.Errorf("after an answer: %+v", p)
		}
		// Somebody else's pulse came between: the answer may be older than it.
		b.beatWith(NewPulse())
		b.beatWith(Pulse{Answer: at(80), Of: second.Token})
		if got := b.prove(); got.Answer != at(70) || got.Of != 1 || got.Pulse != 3 {
			t.Errorf("a late answer was taken: %+v", got)
		}
		b.beatWith(Pulse{Undated: true})
		if got := b.prove(); got.Dated {
			t.Errorf("an answer that was withdrawn is there: %+v", got)
		}
	})
}

// Numbers that another server has given say nothing about this one's.
func TestPulseOfAnotherServer(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onRedis, Options{}))
	first := NewPulse()
	b.beatWith(first)
	second := NewPulse()
	second.Answer, second.Of = at(70), first.Token
	b.beatWith(second)
	life := b.prove().Life
	// What a replica of that server would hold, or a file of it.
	must(t, b.rdb.HSet(t.Context(), b.Layout().Control("last"), "run", "another").Err())
	if p := b.prove(); p.Life != "" || p.Of != 0 || !p.Dated {
		t.Errorf("numbers of another server are believed: %+v", p)
	}
	third := NewPulse()
	third.Answer, third.Of = at(80), second.Token
	b.beatWith(third)
	p := b.prove()
	if p.Life == "" || p.Life == life {
		t.Errorf("life is %q, that of the other server was %q", p.Life, life)
	}
	if p.Of != 0 || p.Answer != at(70) {
		t.Errorf("an answer to a pulse of another server was taken: %+v", p)
	}
}

func TestProveWatermark(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		marks map[string]string
		want  uint64
	}{
		"none":             {map[string]string{}, 0},
		"one":              {map[string]string{"100000": pos(7) + "|me"}, 7},
		"least of all":     {map[string]string{"200000": pos(7) + "|me", "200001": pos(5) + "|me"}, 5},
		"one is missing":   {map[string]string{"200000": pos(7) + "|me"}, 0},
		"another server's": {map[string]string{"100000": pos(7) + "|you"}, 0},
		"one of another":   {map[string]string{"200000": pos(7) + "|me", "200001": pos(9) + "|you"}, 0},
		"the map before":   {map[string]string{"100000": pos(7) + "|me", "200000": pos(9) + "|me", "200001": pos(8) + "|me"}, 8},
		"the next map":     {map[string]string{"100000": pos(7) + "|me", "200000": pos(9) + "|me"}, 7},
		"not ours":         {map[string]string{"x": "y", "100000": "z"}, 0},
	} {
		if got := leastOf(c.marks, "me"); uint64(got.LSN) != c.want {
			t.Errorf("%s: got %v, want %d", name, got, c.want)
		}
	}
}

func pos(lsn uint64) string { return at(lsn).String() }

// Masters are asked one by one: one that does not answer hides no other.
func TestProveOnCluster(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 3)
	s := clustered(t, cluster)
	must(t, s.Heartbeat(t.Context(), Message{V: at(100), W: at(90)}, NewPulse()))
	must(t, s.WriteWatermarks(t.Context(), PartitionStep, at(90), change.Position{}))
	p, err := s.Prove(t.Context())
	must(t, err)
	if len(p.Masters) != 3 || p.Pulse != 1 {
		t.Fatalf("got %+v", p)
	}
	for _, m := range p.Masters {
		if m.Err != nil || m.W != at(90) || m.RunID == "" {
			t.Errorf("got %+v", m)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := s.Prove(ctx); err == nil && (p.Err == nil || p.Masters[0].Err == nil) {
		t.Errorf("got %+v without asking", p)
	}
}
