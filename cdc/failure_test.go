package cdc

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
)

// The ten failure modes that every reader of a Postgres log got wrong at some
// time, each with a test. Those that need a real server are in
// failure_server_test.go.

func TestFailureMode01AckReceivedInsteadOfProcessed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) { g.sink.auto = false })
		g.row(t, 2, "x")
		if err := g.server.keepalive(300, true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual: many statuses
		for _, s := range g.server.seen() {
			if s.flush != 100 || s.apply != 100 {
				t.Fatalf("confirmed %d while the change is not durable, want 100", s.flush)
			}
		}
		if got := g.server.last().written; got != 300 {
			t.Errorf("reported %d as received, want 300", got)
		}
		g.sink.set(func() { g.sink.setDurable(g.sink.batches[len(g.sink.batches)-1].seq) })
		time.Sleep(11 * time.Second)
		if got := g.server.last().flush; got != 300 {
			t.Errorf("confirmed %d when all is durable, want the keepalive's 300", got)
		}
	})
}

func TestFailureMode02NotAckingOnIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		for end := change.LSN(1000); end <= 5000; end += 1000 {
			if err := g.server.keepalive(end, false); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if got := g.server.last().flush; got != end {
				t.Errorf("confirmed %d, want %d: WAL that does not concern us is kept", got, end)
			}
		}
	})
}

func TestFailureMode04PositionFromPayloadLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		// WALStart is anything: of a row it lies before the commit, or behind
		// commits that are still to come.
		for i, start := range []change.LSN{7, 90_000, 0} {
			xid := uint32(i + 2)
			err := g.server.data(start, beginMsg(xid, lsnOf(xid)), relationMsg(1, "a", 'd', "id"), insertMsg(1, "x"), commitMsg(lsnOf(xid), lsnOf(xid)+50))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			want := lsnOf(xid) + 50
			if s := g.server.last(); s.flush != want || s.written != want {
				t.Errorf("confirmed %d, received %d, want the end of the commit, %d", s.flush, s.written, want)
			}
		}
	})
}

func TestFailureMode05SilenceWhileTheSinkIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) {
			g.sink.blocked = true
			g.recv.interval = 2 * time.Second // wal_sender_timeout = 6 s
			g.recv.maxChanges = 1
		})
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for xid := uint32(2); xid < 50; xid++ {
				g.row(t, xid, "x")
			}
		}()
		begin := time.Now()
		time.Sleep(10 * time.Minute)
		last := begin
		for _, s := range g.server.seen() {
			if gap := s.at.Sub(last); gap > 2*time.Second+busyInterval {
				t.Fatalf("the server heard nothing for %v", gap)
			}
			last = s.at
			if s.flush != 100 {
				t.Fatalf("confirmed %d while the sink took nothing", s.flush)
			}
		}
		if gap := time.Since(last); gap > 3*time.Second {
			t.Fatalf("the server has heard nothing for %v", gap)
		}
		g.sink.set(func() { g.sink.blocked = false })
		<-sent
		g.sink.waitEvent(t, "insert public.a id='x'")
		time.Sleep(5 * time.Second)
		if got, want := g.server.last().flush, lsnOf(49)+50; got != want {
			t.Errorf("confirmed %d in the end, want %d", got, want)
		}
		select {
		case err := <-g.recvErr:
			t.Errorf("the session ended: %v", err)
		default:
		}
	})
}

func TestFailureMode06HalfOpenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) { g.deaf = true })
		begin := time.Now()
		err := <-g.recvErr // the server takes everything and says nothing
		if !errors.Is(err, errSilent) {
			t.Fatalf("got %v, want errSilent", err)
		}
		if took := time.Since(begin); took < 30*time.Second || took > 45*time.Second {
			t.Errorf("noticed after %v, want soon after 30 s", took)
		}
		asked := false
		for _, s := range g.server.seen() {
			asked = asked || s.reply
		}
		if !asked {
			t.Error("the server was never asked to say something")
		}
	})
}

// A server that has nothing to say, but answers, is not silent.
func TestFailureMode06QuietIsNotHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		time.Sleep(10 * time.Minute)
		select {
		case err := <-g.recvErr:
			t.Errorf("the session ended: %v", err)
		default:
		}
	})
}

func TestReplyIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		time.Sleep(time.Second / 2)
		before := len(g.server.seen())
		if err := g.server.keepalive(200, true); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // no time passes
		if got := len(g.server.seen()); got != before+1 {
			t.Errorf("%d statuses after a request for a reply, want %d", got, before+1)
		}
	})
}

func TestFailureMode10MessagesNobodyExpects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		err := g.server.data(0,
			msg{'Y'}.u32(9).str("public").str("mood"),
			msg{'M'}.u8(0).u64(150).str("lethe").u32(2).bytes([]byte("{}")),
			msg{'M'}.u8(0).u64(151).str("other").u32(2).bytes([]byte("{}")),
			msg{'?'}.u64(1),
			msg{},
			beginMsg(2, 200),
			msg{'O'}.u64(1).str("origin"),
			relationMsg(1, "a", 'd', "id", "big"),
			msg{'U'}.u32(1).u8('N').u16(2).text("1").u8('u'),
			msg{'I'}.u32(1).u8('N').u16(3).text("1").text("2").text("3"), // a column too many
			msg{'I'}.u32(1).u8('N').u16(2).text("1").u8('b').u32(0),      // binary, which was not asked for
			msg{'D'}.u32(77).u8('K').u16(1).text("1"),                    // a relation nobody announced
			msg{'T'}.u32(1).u8(0).u32(1),
			msg{'S'}.u32(5).u8(1), // of protocol 2
			insertMsg(1, "2", "y"),
			commitMsg(200, 250),
		)
		if err != nil {
			t.Fatal(err)
		}
		g.sink.waitEvent(t, "insert public.a id='2' big='y'")
		synctest.Wait()
		equal(t, g.sink.take(), []string{
			"message lethe {}",
			"update public.a id='1' big=UNCHANGED",
			"truncate public.a",
			"insert public.a id='2' big='y'",
			"raise dead_letter *",
			"raise dead_letter *",
			"raise dead_letter public.a",
			"raise dead_letter public.a",
			"raise dead_letter *",
			"raise dead_letter *",
		})
		select {
		case err := <-g.recvErr:
			t.Errorf("the session ended: %v", err)
		default:
		}
	})
}

func TestGateBackpressureToRaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) {
			g.primary.snap = Snapshot{Xmin: 2, Xmax: 2}
			g.gate.gate.maxRows, g.gate.gate.maxForgotten = 4, 6
			g.recv.maxChanges = 1
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for xid := uint32(2); xid < 100; xid++ {
				g.row(t, xid, "x")
			}
		}()
		time.Sleep(5 * time.Minute)
		select {
		case <-done:
			t.Fatal("all was read although the gate had no room")
		default:
		}
		if got := g.sink.take(); len(got) > 0 {
			t.Fatalf("handed on %q while nothing was visible", got)
		}
		if age := time.Since(g.server.last().at); age > 11*time.Second {
			t.Errorf("the last status is %v old: the slot is not read, but the server must hear of us", age)
		}
		g.primary.set(runningXids())
		<-done
		last := lsnOf(99) + 50
		g.sink.wait(t, "v at the end", func() bool { return g.sink.lastV() == last })
		var raises, rows int
		g.sink.set(func() {
			raises, rows = g.sink.count("raise overflow public.a"), g.sink.count("insert public.a id='x'")
		})
		if raises == 0 || rows == 0 || rows >= 98 {
			t.Errorf("%d raises and %d rows, want some of both, and not all 98 rows", raises, rows)
		}
	})
}

// Records say v as it stands behind them: by then every commit below it has
// been handed on, in them or before.
func TestRecordsCarryVBehindThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) { g.primary.snap = *runningXids(2) })
		for xid := uint32(2); xid <= 5; xid++ {
			g.row(t, xid, "x")
		}
		time.Sleep(time.Second)
		if v := g.sink.v(); v >= lsnOf(2) {
			t.Errorf("v=%d while 2 is held", v)
		}
		g.primary.set(runningXids())
		want := lsnOf(5) + 50
		g.sink.wait(t, "v behind 5", func() bool { return g.sink.lastV() == want })
		seen := map[change.LSN]bool{}
		for _, b := range g.sink.copied() {
			for _, l := range b.lsns {
				seen[l] = true
			}
			for xid := uint32(2); xid <= 5; xid++ {
				if lsnOf(xid) < b.v && !seen[lsnOf(xid)] {
					t.Errorf("batch %d says v=%d, and commit %d was not handed on", b.seq, b.v, xid)
				}
			}
		}
	})
}

// The same when what was held comes in several records at one time: v moves
// with the last of them.
func TestReleasedRecordsCarryVBehindThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(g *rig) { g.primary.snap = *runningXids(2, 3) })
		for xid := uint32(2); xid <= 3; xid++ {
			messages := []msg{beginMsg(xid, lsnOf(xid)), relationMsg(1, "a", 'd', "id")}
			for range segmentChanges / 2 {
				messages = append(messages, insertMsg(1, "x"))
			}
			if err := g.server.data(0, append(messages, commitMsg(lsnOf(xid), lsnOf(xid)+50))...); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		g.primary.set(runningXids())
		want := lsnOf(3) + 50
		g.sink.wait(t, "v behind 3", func() bool { return g.sink.lastV() == want })
		seen := map[change.LSN]int{}
		for _, b := range g.sink.copied() {
			for _, l := range b.lsns {
				seen[l]++
			}
			for xid := uint32(2); xid <= 3; xid++ {
				if lsnOf(xid) < b.v && seen[lsnOf(xid)] != segmentChanges/2 {
					t.Errorf("batch %d says v=%d, and commit %d was not handed on", b.seq, b.v, xid)
				}
			}
		}
	})
}

// What the server says of WAL that is gone is cured by a new slot, although the
// code is that of a missing plugin.
func TestLostWALIsNotPermanent(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		`could not access file "pgoutput": No such file or directory`:             true,
		`requested WAL segment 000000010000000000000001 has already been removed`: false,
	} {
		err := Classify("use slot s", &pgconn.PgError{Code: codeUndefinedFile, Message: message})
		if IsPermanent(err) != want || slotUnusable(err) == want {
			t.Errorf("%s: permanent %v, slot unusable %v, want %v and %v", message, IsPermanent(err), slotUnusable(err), want, !want)
		}
	}
}
