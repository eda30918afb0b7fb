package invalidator

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// sim runs random schedules of commits, readers of the primary and of a
// standby, hand-ons out of order, duplicates, and deaths of the worker, against
// a real worker and a real Redis. The database is a list of commits: a value
// says which of them it contains.
type sim struct {
	*world
	rnd     *rand.Rand
	run     *running
	commits []*simCommit
	fills   []*simFill
	handed  map[*simCommit]bool
	log     []string
}

type simCommit struct {
	changes []change.Change
	lsn     change.LSN
	visible bool
	keys    map[string]bool // entries whose value it changes
}

// simFill is a reader between its miss and its fill.
type simFill struct {
	key    string
	begun  coherence.Begun
	known  coherence.Known
	loaded bool
	value  string
	stand  bool
	stamp  change.Position
}

const simProducts = 4

var simKeys = []string{"product:0", "product:1", "product:2", "product:3", "kept:0", "kept:1", "kept:2", "raw:0", "raw:1"}

// simTags are the tags of a product; every second also has a brand.
func simTags(key string) []string {
	var i int
	if n, _ := fmt.Sscanf(key, "product:%d", &i); n != 1 {
		return nil
	}
	tags := []string{"category:" + itoa(i/2)}
	if i%2 == 0 {
		tags = append(tags, "brand:0")
	}
	return tags
}

func TestSimRandomSchedules(t *testing.T) {
	t.Parallel()
	budget := 8 * time.Second
	if testing.Short() {
		budget = 2 * time.Second
	}
	seed := seedOf(t)
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 2; c.HeartbeatEvery = time.Millisecond }})
	s := &sim{world: w, rnd: rand.New(rand.NewPCG(seed, 1)), handed: map[*simCommit]bool{}}
	s.run = w.ready()
	stored, rounds := 0, 0
	for end := time.Now().Add(budget); time.Now().Before(end) && !t.Failed(); rounds++ {
		stored += s.round()
	}
	t.Logf("%d rounds, %d commits, %d values stored", rounds, len(s.commits), stored)
	if stored < rounds {
		t.Errorf("only %d values stored in %d rounds: the schedules test nothing", stored, rounds)
	}
}

func (s *sim) note(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

// round runs one schedule to its quiescence and compares what is cached.
func (s *sim) round() (stored int) {
	s.log = s.log[:0]
	for range 20 + s.rnd.IntN(40) {
		switch n := s.rnd.IntN(100); {
		case n < 18:
			s.write()
		case n < 30:
			s.show()
		case n < 45:
			s.handOn(false)
		case n < 62:
			s.miss()
		case n < 76:
			s.read()
		case n < 90:
			stored += s.store()
		case n < 95:
			s.again()
		case n < 97:
			s.mark()
		case n < 99:
			s.waitOne()
		default:
			s.die()
		}
	}
	for _, c := range s.commits {
		c.visible = true
	}
	s.handOn(true)
	for len(s.fills) > 0 {
		if f := s.fills[0]; !f.loaded {
			s.load(f)
		}
		stored += s.finish(0)
	}
	s.mark()
	s.settle()
	for _, key := range simKeys {
		got := s.state(key)
		if want := s.truth(key, func(c *simCommit) bool { return true }); got != want && got != "absent" && got != "empty" && got != "dead" && got != "stale" {
			s.t.Errorf("%s holds %q, the truth is %q\n%s", key, got, want, strings.Join(s.log, "\n"))
		}
	}
	return stored
}

// truth is the value of a key in a snapshot: the commits of it that are in it.
func (s *sim) truth(key string, in func(*simCommit) bool) string {
	last, n := change.LSN(0), 0
	for _, c := range s.commits {
		if c.keys[key] && in(c) {
			n++
			last = max(last, c.lsn)
		}
	}
	return fmt.Sprintf("%d commits to %d", n, last)
}

// write commits: flushed, on the standby's way, not visible on the primary yet.
func (s *sim) write() {
	c := &simCommit{keys: map[string]bool{}}
	i := itoa(s.rnd.IntN(simProducts))
	switch s.rnd.IntN(5) {
	case 0:
		c.changes = s.nextCommit(update("categories", itoa(s.rnd.IntN(2))))
	case 1:
		c.changes = s.nextCommit(update("deals", itoa(s.rnd.IntN(2)), "0"))
	case 2:
		c.changes = s.nextCommit(update("raws", i))
	case 3:
		c.changes = s.nextCommit(update("things", i), update("categories", itoa(s.rnd.IntN(2))))
	default:
		c.changes = s.nextCommit(update("products", i, "n"))
	}
	c.lsn = s.lsn
	for _, ch := range c.changes {
		value := func(n int) string { return string(ch.New[n].Bytes) }
		switch ch.Table.Name {
		case "products":
			for _, class := range []string{"product:", "kept:", "raw:"} {
				c.keys[class+value(0)] = true
			}
		case "things":
			c.keys["product:"+value(0)] = true
		case "raws":
			c.keys["raw:"+value(0)] = true
		default:
			for _, key := range simKeys {
				tags := strings.Join(simTags(key), " ")
				if strings.Contains(tags, "category:"+value(0)) && (ch.Table.Name == "categories" || strings.Contains(tags, "brand:"+value(1))) {
					c.keys[key] = true
				}
			}
		}
	}
	s.commits = append(s.commits, c)
	s.note("commit %d of %v %s", c.lsn, c.keys, c.changes[0].Table.Name)
}

// show makes a random commit visible, not in the order of the log.
func (s *sim) show() {
	var hidden []*simCommit
	for _, c := range s.commits {
		if !c.visible {
			hidden = append(hidden, c)
		}
	}
	if len(hidden) > 0 {
		c := hidden[s.rnd.IntN(len(hidden))]
		c.visible = true
		s.note("visible %d", c.lsn)
	}
}

// v is the end of the prefix of commits that are visible and handed on.
func (s *sim) v() change.LSN {
	for _, c := range s.commits {
		if !s.handed[c] {
			return c.lsn
		}
	}
	return s.lsn + 60
}

// handOn is the gate: what is visible goes on, in the order of the log.
func (s *sim) handOn(all bool) {
	for _, c := range s.commits {
		if c.visible && !s.handed[c] && (all || s.rnd.IntN(3) > 0) {
			s.handed[c] = true
			s.note("hand on %d, v %d", c.lsn, s.v())
			s.hand(s.v(), c.changes)
		}
	}
}

func (s *sim) mark() { s.hand(s.v(), nil) }

// again repeats a commit that was handed on, as after a crash of the reader.
func (s *sim) again() {
	if len(s.commits) > 0 {
		if c := s.commits[s.rnd.IntN(len(s.commits))]; s.handed[c] {
			s.note("again %d", c.lsn)
			s.hand(min(s.v(), c.lsn), c.changes)
		}
	}
}

// waitOne lets the worker get ahead of the readers.
func (s *sim) waitOne() {
	s.note("settle")
	s.settle()
}

// die kills the worker and sets another one to work.
func (s *sim) die() {
	s.note("worker dies")
	s.run.kill()
	s.run = s.worker()
}

func (s *sim) miss() {
	key := simKeys[s.rnd.IntN(len(simKeys))]
	f := &simFill{key: key, begun: s.begin(key)}
	s.fills = append(s.fills, f)
	s.note("begin %s with v %d: mine %v", key, f.begun.Ticket.Known.V.LSN, f.begun.Mine)
}

func (s *sim) read() {
	for _, f := range s.fills {
		if !f.loaded {
			s.load(f)
			return
		}
	}
}

// load reads the primary as it shows itself now, or a standby that has replayed
// up to some place.
func (s *sim) load(f *simFill) {
	f.loaded = true
	if f.stand = s.rnd.IntN(3) == 0; !f.stand {
		f.value = s.truth(f.key, func(c *simCommit) bool { return c.visible })
		s.note("load %s: %s", f.key, f.value)
		return
	}
	replayed := s.lsn + 60
	if n := len(s.commits); n > 0 && s.rnd.IntN(2) == 0 {
		replayed = s.commits[max(0, n-1-s.rnd.IntN(3))].lsn
	}
	f.stamp = change.Position{Era: 1, LSN: replayed}
	f.value = s.truth(f.key, func(c *simCommit) bool { return c.lsn < replayed })
	s.note("load %s from the standby at %d: %s", f.key, replayed, f.value)
}

// store fills with a random one of the loaded values.
func (s *sim) store() int {
	if len(s.fills) == 0 {
		return 0
	}
	if i := s.rnd.IntN(len(s.fills)); s.fills[i].loaded {
		return s.finish(i)
	}
	return 0
}

func (s *sim) finish(i int) int {
	f := s.fills[i]
	s.fills = append(s.fills[:i], s.fills[i+1:]...)
	r := coherence.FillRequest{Ticket: f.begun.Ticket, Standby: f.stand, Stamp: f.stamp, Payload: []byte(f.value), Header: coherence.Header{Codec: coherence.CodecRaw}}
	for _, tag := range simTags(f.key) {
		reason, err := s.world.store.Register(s.t.Context(), coherence.RegisterRequest{Name: s.name(tag), Member: f.begun.Ticket.Name, Stamp: r.RegisterStamp()})
		if err != nil {
			s.t.Fatal(err)
		}
		if reason != coherence.Stored {
			s.note("register %s under %s: %v", f.key, tag, reason)
			return 0
		}
	}
	reason, err := s.world.store.Fill(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	s.note("fill %s with %s: %v", f.key, f.value, reason)
	if reason != coherence.Stored {
		return 0
	}
	return 1
}
