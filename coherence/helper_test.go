package coherence

import (
	"context"
	"fmt"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestMain(m *testing.M) { harness.Main(m) }

// testEra is the era of most tests.
const testEra = 1

// at is a position in the test era.
func at(lsn uint64) change.Position {
	return change.Position{Era: testEra, LSN: change.LSN(lsn)}
}

// bench is a Store on one of the servers that it has to run on.
type bench struct {
	*Store
	t    testing.TB
	rdb  *redis.Client
	mini *miniredis.Miniredis
}

// servers on which everything must hold.
const (
	onRedis  = "redis"
	onLegacy = "legacy" // the dialect of servers before 7.0
	onMini   = "miniredis"
)

// everywhere runs a test on each kind of server, seeded at base 10.
func everywhere(t *testing.T, test func(t *testing.T, b *bench)) {
	for _, kind := range []string{onRedis, onLegacy, onMini} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, seeded(open(t, kind, Options{})))
		})
	}
}

// open makes a Store with a namespace of its own.
func open(t testing.TB, kind string, o Options) *bench {
	t.Helper()
	b := &bench{t: t}
	if o.Namespace == "" {
		o.Namespace = harness.Namespace(t) + "-" + randomID()[:6] // also with -count
	}
	var url string
	if kind == onMini {
		b.mini = miniredis.RunT(t)
		if o.RunID == nil {
			o.RunID = func(context.Context, string) (string, error) { return "mini", nil }
		}
		url = "redis://" + b.mini.Addr()
	} else {
		url = harness.Redis(t).URL()
	}
	b.dial(url, o)
	if kind == onLegacy {
		b.legacy, b.setGet = true, false
	}
	return b
}

// on makes a Store on a server of the test's own.
func on(t testing.TB, server *servers.Redis, o Options) *bench {
	t.Helper()
	if o.Namespace == "" {
		o.Namespace = harness.Namespace(t) + "-" + randomID()[:6] // also with -count
	}
	b := &bench{t: t}
	b.dial(server.URL(), o)
	return b
}

func (b *bench) dial(url string, o Options) {
	b.t.Helper()
	var err error
	if b.Store, err = Dial(b.ctx(), url, o); err != nil {
		b.t.Fatalf("Dial: %v", err)
	}
	b.rdb = b.single.client
	b.t.Cleanup(func() { _ = b.Store.Close() })
}

func (b *bench) ctx() context.Context { return b.t.Context() }

// seeded gives the Store a source and its tables a base just below 10.
func seeded(b *bench) *bench {
	b.t.Helper()
	if _, err := b.SetSource(b.ctx(), change.Source{Era: testEra, SystemID: 7, Timeline: 1}); err != nil {
		b.t.Fatalf("SetSource: %v", err)
	}
	b.seed(50) // Bound takes 40 off
	return b
}

func (b *bench) seed(insert uint64) int {
	b.t.Helper()
	n, err := b.Seed(b.ctx(), func(context.Context) (change.Position, error) { return at(insert), nil })
	if err != nil {
		b.t.Fatalf("Seed: %v", err)
	}
	return n
}

// name is a full name.
func (b *bench) name(format string, args ...any) string {
	return b.Layout().Name(fmt.Sprintf(format, args...))
}

// known is what a reader knows that has seen v.
func known(v uint64) Known {
	return Known{Source: change.Source{Era: testEra, SystemID: 7, Timeline: 1}, V: at(v)}
}

func (b *bench) begin(name string, k Known) Begun {
	b.t.Helper()
	got, err := b.Begin(b.ctx(), BeginRequest{Name: name, Known: k})
	if err != nil {
		b.t.Fatalf("Begin(%q): %v", name, err)
	}
	return got
}

func (b *bench) fill(r FillRequest) Reason {
	b.t.Helper()
	got, err := b.Fill(b.ctx(), r)
	if err != nil {
		b.t.Fatalf("Fill(%q): %v", r.Ticket.Name, err)
	}
	return got
}

// put stores a value read from the primary with stamp v.
func (b *bench) put(name string, v uint64) {
	b.t.Helper()
	if got := b.fill(FillRequest{Ticket: b.begin(name, known(v)).Ticket, Payload: []byte("value")}); got != Stored {
		b.t.Fatalf("fill of %q: %v", name, got)
	}
}

func (b *bench) invalidate(batch ...Invalidation) Result {
	b.t.Helper()
	got, err := b.Invalidate(b.ctx(), batch)
	if err != nil {
		b.t.Fatalf("Invalidate: %v", err)
	}
	return got
}

func (b *bench) register(tag, member string, stamp uint64) Reason {
	b.t.Helper()
	got, err := b.Register(b.ctx(), RegisterRequest{Name: tag, Member: member, Stamp: at(stamp)})
	if err != nil {
		b.t.Fatalf("Register: %v", err)
	}
	return got
}

// state is the state of an entry: "V", "S", "E" or "" if it is absent.
func (b *bench) state(name string) string {
	b.t.Helper()
	raw, err := b.rdb.Get(b.ctx(), name).Bytes()
	if err != nil {
		return ""
	}
	h, _, err := Parse(raw)
	if err != nil {
		b.t.Fatalf("%q holds no entry: %v", name, err)
	}
	return string(h.State)
}

func (b *bench) header(name string) Header {
	b.t.Helper()
	raw, err := b.rdb.Get(b.ctx(), name).Bytes()
	if err != nil {
		b.t.Fatalf("GET %q: %v", name, err)
	}
	h, _, err := Parse(raw)
	if err != nil {
		b.t.Fatalf("%q holds no entry: %v", name, err)
	}
	return h
}

func (b *bench) position(name string) (change.Position, bool) {
	b.t.Helper()
	p, closed, err := b.TablePosition(b.ctx(), name, testEra)
	if err != nil {
		b.t.Fatalf("TablePosition: %v", err)
	}
	return p, closed
}

func (b *bench) control(classes ...string) *ControlState {
	b.t.Helper()
	c, err := b.Control(b.ctx(), classes...)
	if err != nil {
		b.t.Fatalf("Control: %v", err)
	}
	return c
}

func (b *bench) raise(cause string, classes ...string) []string {
	b.t.Helper()
	applied, err := b.Raise(b.ctx(), RaiseRequest{Cause: cause, Reason: change.ReasonManual, Classes: classes})
	if err != nil {
		b.t.Fatalf("Raise: %v", err)
	}
	return applied
}

// must fails the test on an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
