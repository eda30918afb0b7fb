package coherence

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// stream reads all broadcasts that were kept.
func (b *bench) stream() []Message {
	b.t.Helper()
	entries, err := b.rdb.XRange(b.ctx(), b.Layout().Control("stream"), "-", "+").Result()
	must(b.t, err)
	out := make([]Message, len(entries))
	for i, e := range entries {
		out[i], err = ParseMessage([]byte(e.Values["m"].(string)))
		must(b.t, err)
	}
	return out
}

func TestRaiseOncePerCause(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		if got := b.raise("slot lost at 1", "product", "*"); !slices.Equal(got, []string{"product", "*"}) {
			t.Errorf("applied %v", got)
		}
		first := b.control("product")
		if first.Classes["product"].Generation == 0 || first.Classes["*"].Cause != "slot lost at 1" {
			t.Errorf("records %+v", first.Classes)
		}
		// Another worker, or the same one again, also after another cause.
		b.raise("truncate at 5", "product")
		second := b.control("product")
		if second.Classes["product"].Generation <= first.Classes["product"].Generation {
			t.Errorf("generation %d after %d", second.Classes["product"].Generation, first.Classes["product"].Generation)
		}
		if got := b.raise("slot lost at 1", "product", "*"); len(got) != 0 {
			t.Errorf("applied again: %v", got)
		}
		if got := b.raise("slot lost at 1", "other"); !slices.Equal(got, []string{"other"}) {
			t.Errorf("applied %v", got)
		}
		after := b.control("product")
		if after.Classes["product"] != second.Classes["product"] {
			t.Errorf("record %+v, want %+v", after.Classes["product"], second.Classes["product"])
		}
		if first.Digest == second.Digest || first.Digest == "" {
			t.Errorf("digests %q, %q", first.Digest, second.Digest)
		}
		for i := range 40 { // the memory of causes is bounded
			b.raise("cause "+strings.Repeat("x", i), "product")
		}
		if n := strings.Count(b.rdb.HGet(b.ctx(), b.Layout().Control("class:product"), "causes").Val(), "\n"); n != 32 {
			t.Errorf("%d causes remembered, want 32", n)
		}
	})
}

func TestRaiseGenerationIsMonotone(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		record := b.Layout().Control("class:product")
		for _, old := range []uint64{1<<53 + 1, 1<<62 + 0xffffffff, 1<<63 - 1} {
			must(t, b.rdb.HSet(b.ctx(), record, "generation", string(AppendGeneration(nil, old))).Err())
			b.raise("after "+string(AppendGeneration(nil, old)), "product")
			if got := b.control("product").Classes["product"].Generation; got != old+1 {
				t.Errorf("after %d: %d, want %d", old, got, old+1)
			}
		}
		// A bound never goes back.
		for i, x := range []uint64{500, 100} {
			_, err := b.Raise(b.ctx(), RaiseRequest{Cause: "bound " + string(rune('a'+i)), Classes: []string{"b"}, Bound: at(x)})
			must(t, err)
		}
		if got := b.control("b").Classes["b"].Bound; got != at(500) {
			t.Errorf("bound %v, want %v", got, at(500))
		}
	})
}

func TestRaiseRefuses(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onMini, Options{}))
	for _, r := range []RaiseRequest{{Classes: []string{"a"}}, {Cause: "two\nlines", Classes: []string{"a"}}, {Cause: "c"}, {Cause: "c", Classes: []string{""}}} {
		if _, err := b.Raise(b.ctx(), r); err == nil {
			t.Errorf("raised %+v", r)
		}
	}
}

func TestSetSource(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		src := func(era uint16, system uint64, timeline uint32) (bool, error) {
			return b.SetSource(b.ctx(), change.Source{Era: era, SystemID: system, Timeline: timeline})
		}
		_, _, err := b.Broadcast(b.ctx(), Message{Kind: KindKeys, V: at(5000), Names: []string{b.name("x")}})
		must(t, err)
		for _, c := range []struct {
			name    string
			era     uint16
			system  uint64
			line    uint32
			changed bool
			older   bool
		}{
			{"the same", testEra, 7, 1, false, false},
			{"a lower timeline in a new era", testEra + 1, 7, 0, false, true},
			{"another system in the same era", testEra, 8, 1, false, true},
			{"promoted", testEra + 1, 7, 2, true, false},
			{"promoted, again", testEra + 1, 7, 2, false, false},
			{"the old primary", testEra, 7, 1, false, true},
			{"an older era of whatever source", testEra, 9, 5, false, true},
			{"another system", 0x10, 1<<64 - 1, 1, true, false},
		} {
			changed, err := src(c.era, c.system, c.line)
			if changed != c.changed || errors.Is(err, ErrOlderSource) != c.older {
				t.Errorf("%s: %v, %v", c.name, changed, err)
			}
		}
		got := b.control()
		if want := (change.Source{Era: 0x10, SystemID: 1<<64 - 1, Timeline: 1}); got.Source != want {
			t.Errorf("source %+v, want %+v", got.Source, want)
		}
		if want := (change.Position{Era: 0x10}); got.V != want {
			t.Errorf("v %v, want zero of the era", got.V)
		}
		if !got.Supported(b.Layout()) {
			t.Errorf("buckets %d, layout %d are not supported", got.Buckets, got.Layout)
		}
		if k := got.Known("product"); k.Source != got.Source || k.V != got.V {
			t.Errorf("known %+v", k)
		}
		// A late v of the old era is nothing.
		_, _, err = b.Broadcast(b.ctx(), Message{Kind: KindHeartbeat, V: at(9000), W: at(9000)})
		must(t, err)
		if after := b.control(); after.V != got.V || after.W != (change.Position{}) {
			t.Errorf("v %v, w %v from another era", after.V, after.W)
		}
		if _, err := b.SetSource(b.ctx(), change.Source{}); !errors.Is(err, ErrNoSource) {
			t.Errorf("era 0: %v", err)
		}
	})
}

func TestBroadcastIsChained(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		sub := b.rdb.Subscribe(b.ctx(), b.Layout().Control("stream"))
		defer sub.Close()
		if _, err := sub.Receive(b.ctx()); err != nil {
			t.Fatal(err)
		}
		before := b.control()
		send := func(m Message) (uint64, string) {
			number, id, err := b.Broadcast(b.ctx(), m)
			must(t, err)
			return number, id
		}
		names := []string{b.name("product:1"), "bytes \x00\xff\n", ""}
		n1, id1 := send(Message{Kind: KindKeys, X: at(100), V: at(150), Names: names})
		b.raise("cause", "product")
		must(t, b.OpenPurge(b.ctx(), Purge{X: at(160), Tags: []string{b.name("t")}, All: true}, at(170)))
		n2, id2 := send(Message{Kind: KindEpoch, V: at(120)}) // a late v does not lower
		hn, hid := send(Message{Kind: KindHeartbeat, V: at(180), W: at(90)})
		must(t, b.AddNamed(b.ctx(), "brand", "maker"))
		send(Message{Kind: KindHeartbeat, V: at(180), W: at(80)})

		var got []Message
		for range 6 {
			m, err := sub.ReceiveMessage(b.ctx())
			must(t, err)
			parsed, err := ParseMessage([]byte(m.Payload))
			must(t, err)
			got = append(got, parsed)
		}
		if n1 != before.Number+1 || n2 != n1+3 || hn != n2 || hid != id2 || got[0].ID != id1 {
			t.Errorf("numbers %d, %d, heartbeat %d %q, last id %q", n1, n2, hn, hid, id2)
		}
		previous := before.ID
		for i, m := range got[:4] {
			if m.Number != n1+uint64(i) || m.Previous != previous {
				t.Errorf("message %d: number %d after %q, want %d after %q", i, m.Number, m.Previous, n1+uint64(i), previous)
			}
			previous = m.ID
		}
		if m := got[0]; m.Kind != KindKeys || m.X != at(100) || m.V != at(150) || !slices.Equal(m.Names, names) {
			t.Errorf("keys: %+v", m)
		}
		if m := got[1]; m.Kind != KindRaise || m.Generation != b.control("product").Classes["product"].Generation {
			t.Errorf("raise: %+v", m)
		}
		if m := got[2]; m.Kind != KindPurge || !m.All || m.X != at(160) {
			t.Errorf("purge: %+v", m)
		}
		state := b.control("product")
		if m := got[4]; m.Kind != KindHeartbeat || m.Number != n2 || m.ID != id2 || m.V != at(180) || m.W != at(90) || len(m.Names) != 0 || m.Digest != state.Digest {
			t.Errorf("heartbeat: %+v", m)
		}
		slices.Sort(got[5].Names)
		if m := got[5]; !slices.Equal(m.Names, []string{"brand", "maker"}) || m.W != at(90) {
			t.Errorf("heartbeat with named classes: %+v", m)
		}
		if state.V != at(180) || state.W != at(90) || state.Number != n2 || state.ID != id2 || !slices.Equal(state.Named, []string{"brand", "maker"}) {
			t.Errorf("control: %+v", state)
		}
		stream := b.stream()
		if last := stream[len(stream)-1]; last.Number != n2 || last.Kind != KindEpoch {
			t.Errorf("the stream ends with %+v", last)
		}
		if state.StreamEnd == "0-0" {
			t.Error("control does not tell the end of the stream")
		}
		if _, _, err := b.Broadcast(b.ctx(), Message{Kind: KindRaise}); err == nil {
			t.Error("a raise without its record was broadcast")
		}
	})
}

func TestBroadcastStreamIsBounded(t *testing.T) {
	t.Parallel()
	b := seeded(open(t, onMini, Options{StreamLength: 1000, StreamBytes: 100_000}))
	names := []string{strings.Repeat("x", 5000)}
	for range 100 {
		_, _, err := b.Broadcast(b.ctx(), Message{Kind: KindKeys, Names: names})
		must(t, err)
	}
	if n := b.rdb.XLen(b.ctx(), b.Layout().Control("stream")).Val(); n < 16 || n > 25 {
		t.Errorf("%d messages of 5 kB in a stream of 100 kB", n)
	}
}

func TestMessageGolden(t *testing.T) {
	t.Parallel()
	m := Message{
		Kind: KindPurge, All: true, Number: 0x2a, ID: "00000000000000aa", Previous: "00000000000000bb", Generation: 1<<53 + 1,
		X: at(1), V: at(2), W: at(3), Bound: at(4), Names: []string{"a", "bc"}, Digest: "00000000000000cc",
	}
	const want = "000000000000002a" + "00000000000000aa" + "00000000000000bb" + "0020000000000001" + "1P" +
		"00010000000000000001" + "00010000000000000002" + "00010000000000000003" + "00010000000000000004" +
		"00000000000000cc" + "\x00\x00\x00\x02\x00\x00\x00\x01a\x00\x00\x00\x02bc"
	if got := string(m.Append(nil)); got != want {
		t.Errorf("wrote %q\nwant  %q", got, want)
	}
	got, err := ParseMessage([]byte(want))
	must(t, err)
	if string(got.Append(nil)) != want || !got.All || got.Kind != KindPurge {
		t.Errorf("read %+v", got)
	}
	for i := range want {
		if _, err := ParseMessage([]byte(want[:i])); !errors.Is(err, ErrMessage) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	m := Message{Kind: KindKeys, Names: []string{"a", "bc"}}
	f.Add(m.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err == nil && m.Kind >= 'a' && m.Kind <= 'z' && string(m.Append(nil)) != string(b) {
			t.Fatalf("read %q, wrote %q", b, m.Append(nil))
		}
	})
}

// Control is lost: its records are given back, never lower, and every L1 hears
// of it.
func TestControlLostEpoch(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		b.raise("one", "product", "*")
		must(t, b.AddNamed(b.ctx(), "brand"))
		must(t, b.OpenPurge(b.ctx(), Purge{X: at(160), Tags: []string{b.name("t")}}, at(170)))
		kept := b.control("product")
		lost := b.Layout()
		must(t, b.rdb.Del(b.ctx(), lost.Control("source"), lost.Control("v"), lost.Control("purges"), lost.Control("last"), lost.Control("named"),
			lost.Control("stream"), lost.Control("class:*"), lost.Control("class:product")).Err())
		if got := b.control("product"); got.Source.Era != 0 || got.Known("product").Source.Era != 0 {
			t.Fatalf("control: %+v", got)
		}
		// Meanwhile another worker has raised.
		b.raise("two", "product")
		raised := b.control("product").Classes["product"].Generation

		for range 2 {
			must(t, b.RestoreControl(b.ctx(), kept))
			got := b.control("product")
			if got.Source != kept.Source || got.V != kept.V || len(got.Purges) != 1 || !slices.Equal(got.Named, kept.Named) {
				t.Errorf("restored %+v\nfrom     %+v", got, kept)
			}
			if got.Classes["*"] != kept.Classes["*"] {
				t.Errorf("record %+v, want %+v", got.Classes["*"], kept.Classes["*"])
			}
			if got.Classes["product"].Generation != raised {
				t.Errorf("generation %d went back from %d", got.Classes["product"].Generation, raised)
			}
		}
		stream := b.stream()
		if last := stream[len(stream)-1]; last.Kind != KindEpoch {
			t.Errorf("the last message is %+v, want an epoch", last)
		}
		if stream[0].Previous == kept.ID {
			t.Error("the chain goes on as if nothing had happened")
		}
	})
}

func TestDialRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "127.0.0.1:1", "http://x", "redis+x://x", "redis://", "redis://a,,b", "redis+sentinel://a:1", "redis://h/x", "redis://a:1,b:2/3",
	} {
		if s, err := Dial(t.Context(), url, Options{}); err == nil {
			t.Errorf("%q: dialled", url)
			_ = s.Close()
		}
	}
	_, err := Dial(t.Context(), "redis://user:secret@127.0.0.1:1", Options{})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	for _, ns := range []string{"lethe", "lethe:x", "a{b}"} {
		rdb := redis.NewClient(&redis.Options{})
		if _, err := New(t.Context(), rdb, Options{Namespace: ns}); err == nil {
			t.Errorf("namespace %q was accepted", ns)
		}
		must(t, rdb.Close())
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	got, err := parseTarget("rediss+sentinel://me:p%40ss@s1:1,s2/main/3?sentinel_password=x")
	must(t, err)
	if got.kind != targetSentinel || got.user != "me" || got.password != "p@ss" || !slices.Equal(got.addrs, []string{"s1:1", "s2:26379"}) ||
		got.master != "main" || got.db != 3 || got.sentinelPassword != "x" || got.tls == nil {
		t.Errorf("%+v", got)
	}
	got, err = parseTarget("redis://a,b:2,[::1]:3")
	must(t, err)
	if got.kind != targetCluster || !slices.Equal(got.addrs, []string{"a:6379", "b:2", "[::1]:3"}) {
		t.Errorf("%+v", got)
	}
	got, err = parseTarget("unix:///run/redis.sock?db=2")
	must(t, err)
	if got.kind != targetSingle || got.network != "unix" || got.addrs[0] != "/run/redis.sock" || got.db != 2 {
		t.Errorf("%+v", got)
	}
}
