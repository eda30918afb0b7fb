package cdc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

var (
	tableA = &change.Table{ID: 1, Schema: "public", Name: "a", Columns: []change.Column{{Name: "id", Key: true}}}
	tableB = &change.Table{ID: 2, Schema: "public", Name: "b", Columns: []change.Column{{Name: "id", Key: true}}}
)

// segBuilder makes segments as the receiver does.
type segBuilder struct{ *segment }

func build() segBuilder { return segBuilder{newSegment()} }

// piece adds a part of a commit. The commit record of xid n lies at n*100 and
// ends at n*100+50.
func (b segBuilder) piece(xid uint32, first, last bool, t *change.Table, rows ...string) segBuilder {
	from := len(b.rec.Changes)
	p := part{kind: partCommit, xid: xid, from: from, to: from, first: first, last: last}
	p.commit = b.commit(change.Commit{LSN: lsnOf(xid)})
	if last {
		p.end = lsnOf(xid) + 50
		p.commit.End = p.end
	}
	b.parts = append(b.parts, p)
	for _, id := range rows {
		row := b.row(1)
		row[0] = change.Value{Kind: change.Text, Bytes: b.copyBytes([]byte(id))}
		b.add(change.Change{Op: change.Insert, Commit: p.commit, Table: t, New: row})
	}
	return b
}

func (b segBuilder) whole(xid uint32, rows ...string) segBuilder {
	return b.piece(xid, true, true, tableA, rows...)
}

func (b segBuilder) keepalive(end change.LSN) segBuilder {
	b.parts = append(b.parts, part{kind: partKeepalive, end: end})
	return b
}

func lsnOf(xid uint32) change.LSN { return change.LSN(xid) * 100 }

func newGate() *gate {
	return &gate{maxBytes: HeldBytesDefault, maxRows: HeldRowsDefault, maxForgotten: HeldForgottenDefault}
}

// running is a snapshot in which these are running and everything below 1000
// that is not named is over.
func runningXids(xids ...uint64) *Snapshot {
	s := &Snapshot{Xmin: 1000, Xmax: 1000, Xip: xids}
	if len(xids) > 0 {
		s.Xmin = slices.Min(xids)
		slices.Sort(s.Xip)
	}
	return s
}

func ids(rec *change.Record) []string {
	var out []string
	for i := range rec.Changes {
		c := &rec.Changes[i]
		if row := c.New; row != nil {
			out = append(out, string(row[0].Bytes))
		}
		if c.Commit.XID == 0 && c.Op != change.Message {
			out = append(out, "without xid")
		}
	}
	return out
}

func all(hs []handed) []string {
	var out []string
	for _, h := range hs {
		out = append(out, ids(h.rec)...)
	}
	return out
}

func TestGateOvertakes(t *testing.T) {
	t.Parallel()
	g := newGate()
	h := g.admit(build().whole(1, "one").whole(2, "two").whole(3, "three").segment, runningXids(1))
	equal(t, ids(h.rec), []string{"two", "three"})
	if g.held != 1 || g.rows != 1 {
		t.Errorf("held=%d rows=%d, want 1 and 1", g.held, g.rows)
	}
	// Still not visible: nothing comes.
	if out := g.release(runningXids(1), nil); len(out) != 0 {
		t.Errorf("released %q before it was visible", all(out))
	}
	equal(t, all(g.release(runningXids(), nil)), []string{"one"})
	if g.held != 0 || g.rows != 0 || g.bytes != 0 || len(g.entries) != 0 {
		t.Errorf("after the release held=%d rows=%d bytes=%d entries=%d, want zeros", g.held, g.rows, g.bytes, len(g.entries))
	}
}

func TestVStopsBelowHeld(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.admit(build().whole(1, "1").whole(2, "2").whole(3, "3").whole(4, "4").segment, runningXids(2, 4))
	if want := lsnOf(1) + 50; g.v != want {
		t.Errorf("v=%s while 2 is held, want the end of 1, %s", g.v, want)
	}
	g.admit(build().keepalive(9999).segment, nil)
	if want := lsnOf(1) + 50; g.v != want {
		t.Errorf("v=%s after a keepalive, want still %s", g.v, want)
	}
	g.release(runningXids(4), nil)
	if want := lsnOf(3) + 50; g.v != want {
		t.Errorf("v=%s while 4 is held, want the end of 3, %s", g.v, want)
	}
	g.release(runningXids(), nil)
	if g.v != 9999 {
		t.Errorf("v=%s when nothing is held, want the keepalive's end", g.v)
	}
}

func TestVNotPastUnsent(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.admit(build().whole(1, "1").piece(2, true, false, tableA, "2a").segment, runningXids())
	// The commit is visible and its rows go on as they come, but not all have.
	if want := lsnOf(1) + 50; g.v != want {
		t.Errorf("v=%s in the middle of 2, want the end of 1, %s", g.v, want)
	}
	g.admit(build().piece(2, false, false, tableA, "2b").segment, nil)
	if want := lsnOf(1) + 50; g.v != want {
		t.Errorf("v=%s in the middle of 2, want the end of 1, %s", g.v, want)
	}
	h := g.admit(build().piece(2, false, true, tableA, "2c").segment, nil)
	equal(t, ids(h.rec), []string{"2c"})
	if want := lsnOf(2) + 50; g.v != want {
		t.Errorf("v=%s at the end of 2, want %s", g.v, want)
	}
}

func TestKeepaliveV(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.v = 10
	g.admit(build().keepalive(500).segment, nil)
	if g.v != 500 {
		t.Errorf("v=%d after a keepalive with nothing held, want 500", g.v)
	}
	g.admit(build().keepalive(400).segment, nil)
	if g.v != 500 {
		t.Errorf("v=%d, it must not go back", g.v)
	}
}

func TestGateStreamsLargeTransaction(t *testing.T) {
	t.Parallel()
	for _, becomes := range []int{0, 5, 99} { // the chunk after which it is visible
		g := newGate()
		var got []string
		for i := range 100 {
			snap := runningXids(7)
			if i >= becomes {
				snap = runningXids()
			}
			got = append(got, all(g.release(snap, nil))...)
			seg := build().piece(7, i == 0, i == 99, tableA, fmt.Sprint(i))
			got = append(got, ids(g.admit(seg.segment, snap).rec)...)
		}
		var want []string
		for i := range 100 {
			want = append(want, fmt.Sprint(i))
		}
		equal(t, got, want)
		if g.held != 0 || g.rows != 0 || g.bytes != 0 || g.v != lsnOf(7)+50 {
			t.Errorf("visible at %d: held=%d rows=%d bytes=%d v=%s", becomes, g.held, g.rows, g.bytes, g.v)
		}
	}
}

func TestGateForgetsRowsBeyondTheLimit(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.maxRows, g.maxForgotten = 100, 2
	rows := make([]string, 60)
	g.admit(build().whole(1, "small").segment, runningXids(1, 2, 3))
	g.admit(build().piece(2, true, true, tableA, rows...).segment, runningXids(1, 2, 3))
	if g.forgotten != 0 {
		t.Fatalf("forgot %d commits below the limit", g.forgotten)
	}
	h := g.admit(build().piece(3, true, false, tableB, rows...).segment, runningXids(1, 2, 3))
	if len(h.rec.Changes) != 0 {
		t.Errorf("%d changes went on, want none", len(h.rec.Changes))
	}
	if g.forgotten == 0 || g.rows > 100 {
		t.Fatalf("forgotten=%d rows=%d beyond the limit", g.forgotten, g.rows)
	}
	// What comes of a forgotten commit later is not kept either.
	g.admit(build().piece(3, false, true, tableA, rows...).segment, runningXids(1, 2, 3))
	if g.rows > 100 {
		t.Errorf("rows=%d, want at most 100", g.rows)
	}
	if !g.full() {
		t.Errorf("forgotten=%d of 2, want full", g.forgotten)
	}
	out := g.release(runningXids(), nil)
	var tables []string
	var rest []string
	for _, h := range out {
		for tb := range h.tables {
			tables = append(tables, tb.Name)
		}
		rest = append(rest, ids(h.rec)...)
	}
	slices.Sort(tables)
	equal(t, tables, []string{"a", "b"})
	if !slices.Contains(rest, "small") {
		t.Errorf("the small commit was not handed on: %q", rest)
	}
	if g.full() || g.held != 0 || g.v != lsnOf(3)+50 {
		t.Errorf("after the release full=%v held=%d v=%s", g.full(), g.held, g.v)
	}
}

func TestGateForgottenMessageRaisesAll(t *testing.T) {
	t.Parallel()
	g := newGate()
	g.maxRows = 1
	seg := build().piece(1, true, true, tableA, "x", "y")
	seg.add(change.Change{Op: change.Message, Commit: seg.parts[0].commit, Content: []byte("{}")})
	g.admit(seg.segment, runningXids(1))
	out := g.release(runningXids(), nil)
	if len(out) != 1 || !out[0].all {
		t.Errorf("got %+v, want a raise of everything: no table stands for what a message names", out)
	}
}

func TestGateHoldsPoison(t *testing.T) {
	t.Parallel()
	g := newGate()
	seg := build().whole(1).whole(2, "x")
	seg.parts[0].poison = []poison{{table: "public.a", err: errors.New("bad")}}
	h := g.admit(seg.segment, runningXids(1))
	if len(h.poison) != 0 {
		t.Error("poison went on before its commit was visible")
	}
	out := g.release(runningXids(), nil)
	if len(out) != 1 || len(out[0].poison) != 1 || out[0].poison[0].x != lsnOf(1) {
		t.Errorf("got %+v, want the poison of commit 1", out)
	}
}

// Every schedule hands every change on exactly once, never before a snapshot
// shows its commit, and never lets v pass what was not handed on.
func TestGateRandomSchedules(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		g := newGate()
		g.maxRows = 1 << 20
		invisible := map[uint64]bool{}
		handedOn := map[string]int{}
		want := 0
		pieces := map[uint32]int{} // what was received of a commit, and of it handed on
		whole := map[uint32]bool{}
		out := map[uint32]int{}
		check := func(hs ...handed) {
			for _, h := range hs {
				for i := range h.rec.Changes {
					c := &h.rec.Changes[i]
					if invisible[c.Commit.XID] {
						t.Fatalf("seed %d: commit %d handed on while invisible", seed, c.Commit.XID)
					}
					handedOn[string(c.New[0].Bytes)]++
					out[uint32(c.Commit.LSN/100)]++
				}
			}
			for xid, n := range pieces {
				if lsnOf(xid) < g.v && (out[xid] != n || !whole[xid]) {
					t.Fatalf("seed %d: v=%s is past commit %d of which %d of %d changes were handed on", seed, g.v, xid, out[xid], n)
				}
			}
		}
		snap := func() *Snapshot {
			var x []uint64
			for xid := range invisible {
				if rnd.IntN(3) == 0 {
					delete(invisible, xid)
				} else {
					x = append(x, xid)
				}
			}
			return runningXids(x...)
		}
		xid, open := uint32(0), false
		for range 60 {
			seg := build()
			for range rnd.IntN(4) {
				first := !open
				if first {
					xid++
					if rnd.IntN(2) == 0 {
						invisible[uint64(xid)] = true
					}
				}
				open = rnd.IntN(3) == 0
				whole[xid] = !open
				var rows []string
				for range rnd.IntN(3) {
					rows = append(rows, fmt.Sprint(want))
					want++
					pieces[xid]++
				}
				seg.piece(xid, first, !open, tableA, rows...)
				if !open && rnd.IntN(4) == 0 {
					seg.keepalive(lsnOf(xid) + 60)
				}
			}
			s := snap()
			check(g.release(s, nil)...)
			check(g.admit(seg.segment, s))
		}
		clear(invisible)
		check(g.release(runningXids(), nil)...)
		if open {
			s := build().piece(xid, false, true, tableA)
			whole[xid] = true
			check(g.admit(s.segment, runningXids()))
		}
		for i := range want {
			if handedOn[fmt.Sprint(i)] != 1 {
				t.Fatalf("seed %d: change %d was handed on %d times", seed, i, handedOn[fmt.Sprint(i)])
			}
		}
		if g.held != 0 || g.rows != 0 || g.bytes != 0 || len(g.entries) != 0 {
			t.Fatalf("seed %d: left held=%d rows=%d bytes=%d entries=%d", seed, g.held, g.rows, g.bytes, len(g.entries))
		}
	}
}

func TestSnapshotWidensXids(t *testing.T) {
	t.Parallel()
	s, err := ParseSnapshot("4294967290:4294967300:4294967290,4294967298")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		xid  uint32
		want uint64
		over bool
	}{
		{4294967289, 4294967289, true},  // before the wrap
		{4294967290, 4294967290, false}, // running
		{4294967295, 4294967295, true},
		{3, 4294967299, true},  // after the wrap
		{2, 4294967298, false}, // running
		{4, 4294967300, false}, // xmax
		{9, 4294967305, false}, // flushed, and newer than anything that is over
	} {
		got := s.Widen(tc.xid)
		if got != tc.want || s.Over(got) != tc.over {
			t.Errorf("xid %d is %d, over=%v; want %d, %v", tc.xid, got, s.Over(got), tc.want, tc.over)
		}
	}
	for _, bad := range []string{"", "1", "1:2", "x:2:", "1:x:", "1:2:x", "1:2:3,"} {
		if _, err := ParseSnapshot(bad); err == nil && bad != "1:2:3," {
			t.Errorf("ParseSnapshot(%q) gave no error", bad)
		}
	}
}

func TestConfirmIsContiguousAndMonotonic(t *testing.T) {
	t.Parallel()
	c := &confirmer{}
	c.restart(100)
	c.appended(1, 200)
	c.appended(2, 200) // an overtaken commit is held: v does not move
	c.appended(3, 300)
	c.idle(350)
	for _, step := range []struct {
		durable uint64
		want    change.LSN
	}{{0, 100}, {1, 200}, {2, 200}, {3, 350}, {1, 350}} {
		if got := c.position(step.durable); got != step.want {
			t.Errorf("durable=%d: may confirm %d, want %d", step.durable, got, step.want)
		}
	}
	c.appended(4, 120) // the same commits again, after a reconnect
	if got := c.position(4); got != 350 {
		t.Errorf("may confirm %d after a reconnect, want 350: it must not go back", got)
	}
}
