package coherence

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// Pulse is what a heartbeat carries so that clients can tell how old their
// knowledge is, by their own clocks only. Positions carry no time: a watermark
// that stands still is that of an idle database or that of a dead reader.
//
// A worker sends a heartbeat with a new Token, and reads the primary's insert
// position after the reply; the next heartbeat carries its bound as Answer. A
// client that did not see the pulse at a moment, and later sees its answer,
// knows that the position was read after that moment: once a master's watermark
// covers the answer, everything that was visible at that moment has been applied
// there. See docs/coherence.md, "How old may it be".
type Pulse struct {
	// Token is random and names a new pulse; "" sends none.
	Token string
	// Answer is the bound of an insert position that was read after the reply
	// to the heartbeat with token Of. Zero answers nothing.
	Answer change.Position
	Of     string
	// Undated withdraws the last answer: this log tells no v, so that no
	// watermark will ever cover one.
	Undated bool
}

// NewPulse returns a pulse with a random token.
func NewPulse() Pulse { return Pulse{Token: randomID()} }

func (p *Pulse) answer() []byte {
	switch {
	case p.Undated:
		return []byte("none")
	case p.Answer.IsZero():
		return nil
	}
	return p.Answer.Append(nil)
}

// Heartbeat is Broadcast of a message of KindHeartbeat, with a pulse. After an
// error it is unknown whether the pulse was sent: it must not be answered.
func (s *Store) Heartbeat(ctx context.Context, m Message, p Pulse) error {
	m.Kind = KindHeartbeat
	_, _, err := s.heartbeat(ctx, &m, p)
	return err
}

// controlRun is the run_id of the control data's master, as this Store knows it.
func (s *Store) controlRun(ctx context.Context, key string) (string, error) {
	n, err := s.owner(ctx, key)
	if err != nil {
		return "", err
	}
	return s.writing(ctx, n), nil
}

// PartitionStep numbers the partitions of watermarks: partition id of a map of
// count partitions is count*PartitionStep + id. The size is part of it because
// "partition 0" promises something else when there is one partition than when
// there are twelve.
const PartitionStep = 100_000

// Proof is what the masters showed of how far they are, at one look.
type Proof struct {
	// Life names the sequence in which Pulse counts; "" if no pulse was sent by
	// way of the server that answered. Pulse is the number of the last one.
	Life  string
	Pulse uint64
	// Dated says that there is an answer; Answer is the last, Of the number of
	// its pulse in this life, 0 if it is of another.
	Dated  bool
	Answer change.Position
	Of     uint64
	// Err says why the control data's master could not be asked.
	Err error
	// Masters are all that could be found.
	Masters []MasterProof
}

// MasterProof is the watermark of one master.
type MasterProof struct {
	// Node is the address of the library's client for the master.
	Node string
	// RunID is that of the server that answered, on the same connection.
	RunID string
	// W is the position below which the effects of every commit are done there;
	// zero if that is unknown.
	W   change.Position
	Err error
}

// Prove asks every master for its watermark, and the control data for the last
// pulse. What one master does not answer is its Err; the error is that of
// finding them.
func (s *Store) Prove(ctx context.Context) (*Proof, error) {
	masters, err := s.topology(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for watermarks: %w", err)
	}
	p := &Proof{Masters: make([]MasterProof, len(masters))}
	last := s.layout.Control("last")
	control := 0
	for i, m := range masters {
		for _, r := range m.ranges {
			if slot := Slot(last); slot >= r[0] && slot <= r[1] {
				control = i
			}
		}
	}
	var wg sync.WaitGroup
	for i, m := range masters {
		wg.Go(func() {
			mp := &p.Masters[i]
			mp.Node = m.node.name
			var pulse *redis.SliceCmd
			pipe := m.node.conn().Pipeline()
			// One pipeline is one connection: the answers are this server's.
			var info *redis.StringCmd
			if s.opts.RunID == nil {
				info = pipe.Info(ctx, "server")
			}
			marks := pipe.HGetAll(ctx, s.layout.Watermark(m.least()))
			if i == control {
				pulse = pipe.HMGet(ctx, last, "life", "run", "pulse", "asked", "of")
			}
			_, mp.Err = pipe.Exec(ctx)
			if mp.Err == nil {
				mp.RunID, mp.Err = s.runID(ctx, m.node, answered{info})
			}
			if mp.Err == nil {
				mp.W = leastOf(marks.Val(), mp.RunID)
			}
			if i == control {
				p.Err = mp.Err
				if mp.Err == nil {
					p.read(pulse.Val(), mp.RunID)
				}
			}
		})
	}
	wg.Wait()
	return p, nil
}

// answered is an INFO that has been asked already.
type answered struct{ cmd *redis.StringCmd }

func (a answered) Info(context.Context, ...string) *redis.StringCmd { return a.cmd }

// read takes the pulse. One that was sent by way of another server (it came
// here by replication, or from a file) dates nothing: that server may have
// counted further.
func (p *Proof) read(fields []any, runID string) {
	var f [5]string
	for i := range min(len(fields), len(f)) {
		f[i], _ = fields[i].(string)
	}
	answer, err := change.ParsePosition(f[3])
	p.Dated = err == nil && f[3] != ""
	if f[0] == "" || f[1] != runID {
		return
	}
	p.Life = f[0]
	p.Pulse, _ = strconv.ParseUint(f[2], 10, 64)
	if p.Dated {
		p.Answer = answer
		p.Of, _ = strconv.ParseUint(f[4], 10, 64)
	}
}

// leastOf is how far a master is: the least watermark of the partitions of one
// map. Of several maps (the transport was changed, partitions were added) each
// whole one tells the truth, and the greatest tells most. What was written
// under another run_id was perhaps lost.
func leastOf(marks map[string]string, runID string) (w change.Position) {
	maps := map[int][]change.Position{}
	for field, text := range marks {
		n, err := strconv.Atoi(field)
		position, run, _ := strings.Cut(text, "|")
		at, err2 := change.ParsePosition(position)
		if err == nil && err2 == nil && run == runID {
			maps[n/PartitionStep] = append(maps[n/PartitionStep], at)
		}
	}
	for count, all := range maps {
		if len(all) == count {
			w = w.Max(slices.MinFunc(all, func(a, b change.Position) int {
				if a.Less(b) {
					return -1
				}
				return 1
			}))
		}
	}
	return w
}
