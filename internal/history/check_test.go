package history

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

const second = int64(time.Second)

// wrote is a write of version n that took half a second from at on, and whose
// invalidation was finished a second after its beginning.
func wrote(n, at int64) Op {
	return Op{Kind: "write", Write: true, N: n, Start: at * second, End: at*second + second/2, LSN: uint64(100 * n)}
}

func read(n, at int64) Op {
	return Op{Kind: "get", Client: 1, N: n, Start: at * second, End: at*second + second/10}
}

// past is a history of writes at 10, 20 and 30 s, the third a deletion.
func past(reads ...Op) *History {
	last := wrote(3, 30)
	last.Absent = true
	return &History{
		Ops:      append([]Op{wrote(1, 10), wrote(2, 20), last}, reads...),
		W:        []Mark{{11 * second, 101}, {21 * second, 201}, {31 * second, 301}},
		Replayed: []Mark{{15 * second, 101}, {25 * second, 201}, {35 * second, 301}},
		Strict:   func(int) bool { return true },
	}
}

func with(o Op, f func(*Op)) Op {
	f(&o)
	return o
}

// Every rule of the check is broken once, and met just so.
func TestCheck(t *testing.T) {
	t.Parallel()
	after := func(o *Op) { o.After = true }
	nothing := func(o *Op) { o.Absent = true }
	standby := func(client int, start, end int64) *Load {
		return &Load{Client: client, Standby: true, Start: start * second, End: end * second}
	}
	for name, c := range map[string]struct {
		h    *History
		want string
	}{
		"fresh":                 {past(read(1, 12), read(2, 22)), ""},
		"within the life of L1": {past(read(1, 22)), ""},
		"stale":                 {past(read(1, 23)), "row 0: a read by client 1 (get) found version 1, want one of the versions 2 to 2"},
		"never written":         {past(read(2, 15)), "want one of the versions 1 to 1"},
		"being written":         {past(read(1, 10)), ""},
		"absent":                {past(with(read(0, 40), nothing)), ""},
		"absent too early":      {past(with(read(0, 25), nothing)), "found nothing"},
		"there after deletion":  {past(read(3, 40)), "found version 3"},
		"token":                 {past(with(read(2, 21), after)), ""},
		"stale under a token":   {past(with(read(1, 21), after)), "a read under a token"},
		"token after it was over, though": {past(with(read(1, 21), func(o *Op) {
			o.After, o.Start = true, 20*second
		})), ""},
		"order of two reads under tokens": {past(
			with(read(2, 20), after),
			with(read(1, 20), func(o *Op) { o.After, o.Start, o.End = true, o.Start+second/5, o.End+second/5 }),
		), "not linearizable"},
		"from the standby just now": {past(with(read(1, 23), func(o *Op) { o.Load = standby(1, 23, 24) })), ""},
		"from the standby, by another": {past(with(read(1, 23), func(o *Op) {
			o.Load = standby(2, 23, 24)
		})), "found version 1"},
		"from the standby long ago": {past(with(read(1, 23), func(o *Op) { o.Load = standby(1, 21, 22) })), "found version 1"},
		"the standby knew":          {past(with(read(1, 26), func(o *Op) { o.Load = standby(1, 26, 27) })), "found version 1"},
		"part of what was loaded just now": {past(with(read(1, 23), func(o *Op) {
			o.Load, o.Outer = standby(1, 22, 23), &Load{Client: 1, Start: 22 * second, End: 24 * second}
		})), ""},
		"cached part of what was loaded just now": {past(with(read(1, 23), func(o *Op) {
			o.Load, o.Outer = standby(1, 20, 21), &Load{Client: 1, Start: 22 * second, End: 24 * second}
		})), "found version 1"},
		"version written twice": {past(wrote(2, 25)), "twice"},
		"version left out":      {past(wrote(5, 45)), "nobody says"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := strings.Join(c.h.Check(), "\n")
			if c.want == "" && faults != "" || !strings.Contains(faults, c.want) {
				t.Errorf("got %q, want %q", faults, c.want)
			}
		})
	}
	h := past(read(1, 23))
	h.Dropping = []Interval{{19 * second, 22 * second}}
	if faults := h.Check(); faults != nil {
		t.Errorf("while messages are lost: %q", faults)
	}
	h.Ops = append(h.Ops, read(1, 24))
	if faults := h.Check(); len(faults) != 1 {
		t.Errorf("long after messages were lost: %q", faults)
	}
	h = past(read(1, 25))
	h.Lost = []Interval{{24 * second, 26 * second}}
	if faults := h.Check(); faults != nil {
		t.Errorf("before what was lost was redone: %q", faults)
	}
}

// The proxy loses, delays and repeats messages, and nothing else.
func TestBroadcastProxy(t *testing.T) {
	t.Parallel()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	message := func(text string) string {
		return "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\n" + text + "\r\n"
	}
	const pong, array = "*2\r\n$4\r\npong\r\n$1\r\nx\r\n", "*3\r\n:1\r\n$-1\r\n*1\r\n+OK\r\n"
	for name, c := range map[string]struct {
		chaos Chaos
		sent  string
		want  string
	}{
		"nothing": {Chaos{}, message("1") + pong + array + message("2"), message("1") + pong + array + message("2")},
		"drop":    {Chaos{Drop: 1}, message("1") + pong + array + message("2"), pong + array},
		"twice":   {Chaos{Twice: 1}, message("1") + pong + message("2") + pong, message("1") + pong + message("2") + message("1") + pong},
	} {
		b, err := NewBroadcast(server.Addr().String(), newRandom(1, 1))
		if err != nil {
			t.Fatal(err)
		}
		b.Set(c.chaos)
		conn, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		from, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := from.Write([]byte(c.sent)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(c.want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
		want := strings.Count(c.sent, "message")
		if c.chaos == (Chaos{}) {
			want = 0
		}
		if got := b.Harmed(); got != want {
			t.Errorf("%s: %d messages harmed, want %d", name, got, want)
		}
		_ = conn.Close()
		_ = from.Close()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
