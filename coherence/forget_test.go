package coherence

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// A glob takes values, versions and tickets of every form, and nothing else.
func TestForget(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		n := b.name
		plain := func(name string) Ticket {
			begun, err := b.Begin(b.ctx(), BeginRequest{Name: name, Known: known(100), Plain: true})
			must(t, err)
			return begun.Ticket
		}
		taken := []string{n("user:1:posts"), n("user:2:posts@3"), n("user:{3}:posts"), n("user:4}:posts")}
		spared := []string{n("user:1:likes"), n("user:1:posts:2"), n("user:1:posts@x"), b.Layout().Namespace() + "x:user:1:posts", "user:1:posts" + b.Layout().Namespace()}
		for _, k := range slices.Concat(taken, spared) {
			b.put(k, 100)
		}
		// A fill in flight, of an entry that has nothing but its ticket.
		var tickets []Ticket
		for _, k := range []string{n("user:9:posts"), n("user:{9}:posts"), n("user:9}:posts")} {
			tickets = append(tickets, plain(k))
		}
		other := plain(n("user:9:likes"))
		control := b.rdb.Keys(b.ctx(), "lethe:*"+b.Layout().Namespace()+"*").Val()

		var told []string
		done, err := b.Forget(b.ctx(), ForgetRequest{
			Glob: EscapeGlob(b.Layout().Namespace()) + ":user:*:posts", X: at(200), Rate: 1 << 30,
			Group: func(name string) int { return strings.Count(name, "@") },
			Tell: func(name string) bool {
				told = append(told, name)
				return true
			},
		})
		must(t, err)
		if b.legacy { // where a ticket may count as well
			done.Unlinked = []int{min(done.Unlinked[0], 3), min(done.Unlinked[1], 1)}
		}
		if !slices.Equal(done.Unlinked, []int{3, 1}) || len(done.Masters) != 1 || done.Looked == 0 {
			t.Errorf("done %+v, want 3 and 1 of one master", done)
		}
		for _, k := range taken {
			if b.state(k) != "" {
				t.Errorf("%q is still there", k)
			}
			if p, _ := b.position(k); p.Less(at(200)) {
				t.Errorf("the table of %q stands at %v", k, p)
			}
			if !slices.Contains(told, k) {
				t.Errorf("nobody was told of %q", k)
			}
		}
		for _, k := range spared {
			if b.state(k) != "V" {
				t.Errorf("%q is gone", k)
			}
		}
		for _, ticket := range tickets {
			if got := b.fill(FillRequest{Ticket: ticket, Payload: []byte("old")}); got != RefusedAbsent {
				t.Errorf("a fill of %q that was in flight: %v", ticket.Name, got)
			}
		}
		if got := b.fill(FillRequest{Ticket: other, Payload: []byte("v")}); got != Stored {
			t.Errorf("a fill of %q: %v", other.Name, got)
		}
		for _, k := range control {
			if b.rdb.Exists(b.ctx(), k).Val() == 0 && !strings.HasPrefix(k, "lethe:t:") {
				t.Errorf("%q is gone", k)
			}
		}
		if m := b.lastMessage(); m.Kind != KindKeys || len(m.Names) == 0 {
			t.Errorf("last message %+v", m)
		}
	})
}

func (b *bench) lastMessage() Message {
	b.t.Helper()
	e, err := b.rdb.XRevRangeN(b.ctx(), b.Layout().Control("stream"), "+", "-", 1).Result()
	must(b.t, err)
	m, err := ParseMessage([]byte(e[0].Values["m"].(string)))
	must(b.t, err)
	return m
}

// What we take for a match is what Redis takes for one.
func TestGlobIsThatOfRedis(t *testing.T) {
	t.Parallel()
	b := open(t, onRedis, Options{})
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int, of ...string) string {
		var s strings.Builder
		for range r.IntN(n) {
			s.WriteString(of[r.IntN(len(of))])
		}
		return s.String()
	}
	names := map[string]bool{}
	for range 60 {
		names[b.name("%s", text(6, "a", "b", "c", "-", "]", "[", "^", `\\`, "*", ":"))] = true
	}
	for name := range names {
		must(t, b.rdb.Set(b.ctx(), name, "v", 0).Err())
	}
	prefix := EscapeGlob(b.Layout().Namespace()) + ":"
	for range 400 {
		glob := prefix + text(6, "a", "b", "*", "?", "[", "]", "[ab]", "[^a]", "[a-c]", "[c-a]", `\\`, "-", "^", `[\\]]`)
		parsed := keytext.ParseGlob(glob)
		var found []string
		_, err := b.ScanKeys(context.Background(), glob, func(_ context.Context, p KeyPage) error {
			found = append(found, p.Keys...)
			return nil
		})
		must(t, err)
		for name := range names {
			if got, want := parsed.Match(name), slices.Contains(found, name); got != want {
				t.Fatalf("%q matches %q: %v, for Redis %v", glob, name, got, want)
			}
		}
	}
}

// The rate holds it back: a bound from below, which no slow machine breaks.
func TestForgetKeepsItsRate(t *testing.T) {
	t.Parallel()
	b := open(t, onMini, Options{})
	started := time.Now()
	done, err := b.Forget(b.ctx(), ForgetRequest{Glob: "nothing", Rate: 10_000})
	must(t, err)
	if took, least := time.Since(started), time.Duration(done.Looked)*time.Second/10_000; took < least {
		t.Errorf("%d keys at 10,000 a second took %v, want at least %v", done.Looked, took, least)
	}
}
