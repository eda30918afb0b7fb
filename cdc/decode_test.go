package cdc

import (
	"bytes"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// feed decodes messages into one segment and renders its changes.
func feed(t testing.TB, d *decoder, seg *segment, messages ...msg) []string {
	t.Helper()
	for _, m := range messages {
		if err := d.decode(seg, 0, m); err != nil {
			t.Fatal(err)
		}
	}
	var out []string
	for i := range seg.rec.Changes {
		out = append(out, render(&seg.rec.Changes[i]))
	}
	for i := range seg.parts {
		for _, p := range seg.parts[i].poison {
			out = append(out, "poison "+p.table)
		}
	}
	return out
}

func TestDecodeCommit(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	feed(t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'd', "id"), insertMsg(1, "1"), insertMsg(1, "2"), commitMsg(700, 750))
	if len(seg.parts) != 1 {
		t.Fatalf("%d parts, want 1", len(seg.parts))
	}
	p := seg.parts[0]
	if p.xid != 7 || !p.first || !p.last || p.from != 0 || p.to != 2 || p.end != 750 {
		t.Errorf("part is %+v", p)
	}
	c := seg.rec.Changes[1]
	if c.Ordinal != 1 || c.Commit.LSN != 700 || c.Commit.End != 750 || c.Commit != seg.rec.Changes[0].Commit {
		t.Errorf("change is %+v of %+v", c, c.Commit)
	}
	if want := time.Date(2000, 1, 1, 0, 0, 1, 0, time.UTC); !c.Commit.Time.Equal(want) {
		t.Errorf("commit time is %v, want %v", c.Commit.Time, want)
	}
}

func TestDecodeContinuesInTheNextSegment(t *testing.T) {
	t.Parallel()
	d, a, b := newDecoder(nil), newSegment(), newSegment()
	feed(t, d, a, beginMsg(7, 700), relationMsg(1, "a", 'd', "id"), insertMsg(1, "1"))
	feed(t, d, b, insertMsg(1, "2"), commitMsg(700, 750))
	if p := a.parts[0]; !p.first || p.last {
		t.Errorf("the first piece is %+v", p)
	}
	if p := b.parts[0]; p.first || !p.last || p.xid != 7 || p.commit.LSN != 700 {
		t.Errorf("the last piece is %+v", p)
	}
	if o := b.rec.Changes[0].Ordinal; o != 1 {
		t.Errorf("ordinal is %d, want 1: it counts through the transaction", o)
	}
}

func TestDecodeRelationChange(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	got := feed(
		t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'd', "id"), insertMsg(1, "1"),
		relationMsg(1, "a", 'd', "id"), insertMsg(1, "2"),
		relationMsg(1, "a", 'd', "id", "name"), insertMsg(1, "3", "x"),
	)
	equal(t, got, []string{"insert public.a id='1'", "insert public.a id='2'", "insert public.a id='3' name='x'"})
	c := seg.rec.Changes
	if c[0].Table != c[1].Table {
		t.Error("a repeated announcement made a new table")
	}
	if c[1].Table == c[2].Table || len(c[1].Table.Columns) != 1 {
		t.Error("a changed relation changed the table that earlier changes have")
	}
	// A new connection announces everything again; the pointer stays.
	d.reset()
	next := newSegment()
	feed(t, d, next, beginMsg(8, 800), relationMsg(1, "a", 'd', "id", "name"), insertMsg(1, "4", "y"))
	if next.rec.Changes[0].Table != c[2].Table {
		t.Error("an unchanged relation got a new table on a new connection")
	}
	// What the last connection announced is not known on this one.
	d.reset()
	equal(t, feed(t, d, newSegment(), beginMsg(9, 900), insertMsg(1, "5", "z")), []string{"poison "})
}

func TestDecodeOldRows(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	update := func(kind byte, old, row func(msg) msg) msg {
		m := msg{'U'}.u32(1)
		if kind != 0 {
			m = old(m.u8(kind).u16(3))
		}
		return row(m.u8('N').u16(3))
	}
	got := feed(t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'd', "id", "big", "n"),
		update('K', func(m msg) msg { return m.text("1").u8('n').u8('n') }, func(m msg) msg { return m.text("2").u8('u').u8('n') }),
		update('O', func(m msg) msg { return m.text("1").text("B").u8('n') }, func(m msg) msg { return m.text("1").u8('u').u8('u') }),
		update('O', func(m msg) msg { return m.text("1").u8('u').u8('n') }, func(m msg) msg { return m.text("1").u8('u').text("3") }),
		update(0, nil, func(m msg) msg { return m.text("1").u8('u').text("4") }),
		msg{'D'}.u32(1).u8('K').u16(3).text("9").u8('n').u8('n'),
		msg{'D'}.u32(1).u8('O').u16(3).text("9").text("B").u8('n'),
	)
	equal(t, got, []string{
		"update public.a id='2' big=UNCHANGED n=NULL | old id='1' big=ABSENT n=ABSENT",
		"update public.a id='1' big='B' n=NULL | old id='1' big='B' n=NULL",
		"update public.a id='1' big=UNCHANGED n='3' | old id='1' big=UNCHANGED n=NULL",
		"update public.a id='1' big=UNCHANGED n='4'",
		"delete public.a | old id='9' big=ABSENT n=ABSENT",
		"delete public.a | old id='9' big='B' n=NULL",
	})
}

// A table may have no columns. Its rows are rows all the same.
func TestDecodeTableWithoutColumns(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	got := feed(t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'f'), msg{'I'}.u32(1).u8('N').u16(0),
		msg{'D'}.u32(1).u8('O').u16(0), msg{'U'}.u32(1).u8('O').u16(0).u8('N').u16(0))
	if len(got) != 3 {
		t.Fatalf("got %q, want three changes", got)
	}
	for i, want := range []struct{ old, row bool }{{false, true}, {true, false}, {true, true}} {
		c := seg.rec.Changes[i]
		if (c.Old != nil) != want.old || (c.New != nil) != want.row {
			t.Errorf("%s: old %v, new %v; want an old row: %v, a new one: %v", c.Op, c.Old, c.New, want.old, want.row)
		}
	}
}

func TestDecodeDoesNotAliasTheWire(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	m := insertMsg(1, "hello")
	feed(t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'd', "id"), m)
	for i := range m {
		m[i] = 0xff // the socket's buffer is read into again
	}
	if got := seg.rec.Changes[0].New[0].Bytes; string(got) != "hello" {
		t.Errorf("the value became %q", got)
	}
}

func TestDecodeRowsAllocateNothing(t *testing.T) {
	d, seg := newDecoder(nil), newSegment()
	feed(t, d, seg, beginMsg(7, 700), relationMsg(1, "a", 'd', "id", "b", "c", "d"))
	m := insertMsg(1, "1", "22", "333", "4444")
	seg.rec.Changes = make([]change.Change, 0, 20_000)
	got := testing.AllocsPerRun(10_000, func() {
		if err := d.decode(seg, 0, m); err != nil {
			t.Fatal(err)
		}
	})
	// The chunks of 64 KB are what is left: 25 bytes of message, 128 of values.
	if got > 0.1 {
		t.Errorf("%v allocations for each row", got)
	}
}

func TestDecodeHeartbeat(t *testing.T) {
	t.Parallel()
	var got []byte
	d, seg := newDecoder(func(b []byte) { got = bytes.Clone(b) }), newSegment()
	m := msg{'M'}.u8(0).u64(5).str(heartbeatPrefix).u32(3).bytes([]byte("abc"))
	if out := feed(t, d, seg, m); len(out) != 0 || string(got) != "abc" {
		t.Errorf("got %q and changes %q, want the content and none", got, out)
	}
	if took, ok := heartbeatArrived("id", []byte("id 1000000"), time.UnixMicro(1500000)); !ok || took != time.Second/2 {
		t.Errorf("heartbeat took %v, %v; want 500ms", took, ok)
	}
	if _, ok := heartbeatArrived("id", []byte("other 1000000"), time.UnixMicro(1500000)); ok {
		t.Error("took another reader's heartbeat for its own")
	}
}

// Whatever arrives, the decoder neither panics nor makes rows that do not fit
// their table, and a transaction's parts stay in order.
func FuzzDecode(f *testing.F) {
	script := func(messages ...msg) []byte {
		var b msg
		for _, m := range messages {
			b = b.u16(len(m)).bytes(m)
		}
		return b
	}
	f.Add(script(beginMsg(7, 700), relationMsg(1, "a", 'd', "id", "b"), insertMsg(1, "1", "2"), commitMsg(700, 750)))
	f.Add(script(beginMsg(7, 700), relationMsg(1, "a", 'f', "id", "b"),
		msg{'U'}.u32(1).u8('O').u16(2).text("1").u8('n').u8('N').u16(2).text("1").u8('u'),
		msg{'D'}.u32(1).u8('K').u16(2).text("1").u8('n'), msg{'T'}.u32(2).u8(3).u32(1).u32(2), commitMsg(700, 750)))
	f.Add(script(msg{'M'}.u8(1).u64(5).str("lethe").u32(3).bytes([]byte("abc")), msg{'Y'}, msg{'O'}, msg{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, seg := newDecoder(nil), newSegment()
		for len(data) >= 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			m := data[2 : 2+n]
			data = data[2+n:]
			if err := d.decode(seg, 1, m); err != nil {
				break
			}
		}
		at := 0
		for i := range seg.parts {
			p := &seg.parts[i]
			if p.from != at || p.to < p.from {
				t.Fatalf("part %d is [%d,%d), the one before ended at %d", i, p.from, p.to, at)
			}
			at = p.to
			for j := p.from; j < p.to; j++ {
				c := &seg.rec.Changes[j]
				if c.Commit != p.commit {
					t.Fatalf("change %d belongs to another commit than its part", j)
				}
				for _, row := range []change.Row{c.Old, c.New} {
					if row != nil && len(row) != len(c.Table.Columns) {
						t.Fatalf("row of %d values in a table of %d columns", len(row), len(c.Table.Columns))
					}
				}
				if c.Op != change.Message && c.Table == nil {
					t.Fatal("row change without a table")
				}
			}
		}
		if at != len(seg.rec.Changes) {
			t.Fatalf("%d changes in parts, %d in the record", at, len(seg.rec.Changes))
		}
		// The gate takes whatever the decoder makes.
		g := newGate()
		g.admit(seg, runningXids(7))
		g.release(runningXids(), nil)
	})
}
