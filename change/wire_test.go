package change

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func text(s string) Value { return Value{Kind: Text, Bytes: []byte(s)} }

func products() *Table {
	return &Table{ID: 16385, Schema: "public", Name: "products", Identity: IdentityDefault, Columns: []Column{
		{Name: "id", Type: 20, Key: true}, {Name: "name", Type: 25}, {Name: "price", Type: 1700},
	}}
}

// goldenRecords are the records whose bytes are frozen in testdata. A change
// of the bytes is a change of the format and needs a new version.
func goldenRecords() map[string]*Record {
	t, u := products(), &Table{ID: 16400, Schema: "shop", Name: "Größen", Identity: IdentityFull, Columns: []Column{
		{Name: "a", Type: 23, Key: true}, {Name: "b", Type: 25, Key: true},
	}}
	src := Source{Era: 3, SystemID: 7412345678901234567, Timeline: 2}
	c1 := &Commit{XID: 1<<33 + 7, LSN: 0x16B374D848, End: 0x16B374D878, Time: time.Date(2026, 11, 21, 12, 30, 1, 123456000, time.UTC)}
	c2 := &Commit{XID: 1<<33 + 9, LSN: 0x16B374D900, End: 0x16B374D930, Time: c1.Time.Add(time.Millisecond)}
	return map[string]*Record{
		"mark": {Source: src, V: 0x16B374D848, Partition: 11, Partitions: 12, MapVersion: 1<<24 | 12},
		"changes": {Source: src, V: 0x16B374D930, Partition: 3, Partitions: 12, MapVersion: 1<<24 | 12, Changes: []Change{
			{Op: Insert, Commit: c1, Ordinal: 0, Table: t, New: Row{text("1"), text("a lamp"), {Kind: Null}}},
			{Op: Update, Commit: c1, Ordinal: 1, Table: t, New: Row{text("1"), {Kind: Unchanged}, text("12.50")}},
			{Op: Update, Commit: c1, Ordinal: 2, Table: t, Old: Row{text("1"), {}, {}}, New: Row{text("2"), text(strings.Repeat("x", 200)), text("")}},
			{Op: Delete, Commit: c2, Ordinal: 0, Table: u, Old: Row{text("7"), text("größe")}},
			{Op: Delete, Commit: c2, Ordinal: 1, Table: t, Old: Row{text("2"), {}, {}}},
			{Op: Truncate, Commit: c2, Ordinal: 2, Table: u},
		}},
		"message": {Source: src, V: 1, Partitions: 1, MapVersion: 1, Changes: []Change{
			{Op: Message, Commit: &Commit{LSN: 0x42}, Prefix: "lethe", Content: []byte(`{"keys":["product:1"]}`)},
		}},
		"raise": {Source: src, V: 0x1000, Partition: 1, Partitions: 2, MapVersion: 2, Raises: []Raise{
			{Cause: "slot-3-0", Reason: ReasonSlotLost, Classes: []string{"*"}, Bound: Position{3, 0xfd8}},
			{Cause: "t-1", Reason: ReasonTruncate, Classes: []string{"product", "list"}, Tables: []string{"public.products"}, X: Position{3, 0xf00}, Bound: Position{3, 0xfd8}},
		}},
		"insert_lsn": {Partitions: 1, InsertLSN: true, Changes: []Change{
			{Op: Insert, Commit: &Commit{XID: 5}, Table: t, New: Row{text("1"), text("n"), text("2")}},
		}},
	}
}

func TestGoldenRecords(t *testing.T) {
	t.Parallel()
	for name, r := range goldenRecords() {
		var e Encoder
		got, err := e.Append(nil, r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join("testdata", name+".golden")
		file := fmt.Sprintf("%s\n%s", r.Dump(), hex.Dump(got))
		if *update {
			if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if file != string(want) {
			t.Errorf("%s: encoded record\n%s\nwant\n%s", name, file, want)
		}
		var back Record
		if err := new(Decoder).Decode(&back, got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if back.Dump() != r.Dump() {
			t.Errorf("%s: decoded\n%s\nwant\n%s", name, back.Dump(), r.Dump())
		}
	}
}

// randomRecord makes a record with everything in it that the format can hold.
func randomRecord(rnd *rand.Rand) *Record {
	r := &Record{
		Source: Source{Era: uint16(rnd.Uint32()), SystemID: rnd.Uint64(), Timeline: rnd.Uint32()},
		V:      LSN(rnd.Uint64()), Partition: rnd.IntN(1000), Partitions: rnd.IntN(1 << 30), MapVersion: rnd.Uint32(),
		InsertLSN: rnd.IntN(8) == 0,
	}
	tables := make([]*Table, 1+rnd.IntN(4))
	for i := range tables {
		tables[i] = &Table{ID: rnd.Uint32(), Schema: randomText(rnd, 10), Name: randomText(rnd, 80), Identity: IdentityDefault}
		for range rnd.IntN(6) {
			tables[i].Columns = append(tables[i].Columns, Column{Name: randomText(rnd, 9), Type: rnd.Uint32(), Key: rnd.IntN(2) == 0})
		}
	}
	row := func(t *Table) Row {
		if rnd.IntN(4) == 0 {
			return nil
		}
		row := make(Row, len(t.Columns))
		for i := range row {
			row[i].Kind = []ValueKind{Absent, Null, Unchanged, Text}[rnd.IntN(4)]
			if row[i].Kind == Text {
				row[i].Bytes = []byte(randomText(rnd, 300))
			}
		}
		return row
	}
	var commit *Commit
	for range rnd.IntN(20) {
		if commit == nil || rnd.IntN(3) == 0 {
			commit = &Commit{XID: rnd.Uint64(), LSN: LSN(rnd.Uint64()), End: LSN(rnd.Uint64())}
			if rnd.IntN(4) != 0 {
				commit.Time = time.UnixMicro(rnd.Int64N(1 << 52)).UTC()
			}
		}
		c := Change{Commit: commit, Ordinal: rnd.Uint32(), Op: []Op{Insert, Update, Delete, Truncate, Message}[rnd.IntN(5)]}
		if c.Op == Message {
			c.Prefix, c.Content = randomText(rnd, 20), append([]byte(nil), randomText(rnd, 500)...)
		} else {
			c.Table = tables[rnd.IntN(len(tables))]
			c.Old, c.New = row(c.Table), row(c.Table)
		}
		r.Changes = append(r.Changes, c)
	}
	for range rnd.IntN(3) {
		x := Raise{Cause: randomText(rnd, 30), Reason: ReasonManual, X: Position{uint16(rnd.Uint32()), LSN(rnd.Uint64())}}
		for range rnd.IntN(3) {
			x.Classes = append(x.Classes, randomText(rnd, 20))
			x.Tables = append(x.Tables, randomText(rnd, 20))
		}
		r.Raises = append(r.Raises, x)
	}
	return r
}

func randomText(rnd *rand.Rand, most int) string {
	b := make([]byte, rnd.IntN(most+1))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return string(b)
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var e Encoder
	var d Decoder
	var back Record // reused on purpose: nothing of the last record may shine through
	for i := range 2000 {
		r := randomRecord(rnd)
		b, err := e.Append(nil, r)
		if err != nil {
			t.Fatalf("seed %d, record %d: %v", seed, i, err)
		}
		if err := d.Decode(&back, b); err != nil {
			t.Fatalf("seed %d, record %d: %v\n%s", seed, i, err, r.Dump())
		}
		if got, want := back.Dump(), r.Dump(); got != want {
			t.Fatalf("seed %d, record %d: decoded\n%s\nwant\n%s", seed, i, got, want)
		}
		again, err := e.Append(nil, &back)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("seed %d, record %d: encoded again %x (%v), want %x", seed, i, again, err, b)
		}
		for j := range r.Changes {
			if got, want := back.Changes[j].Old == nil, r.Changes[j].Old == nil; got != want {
				t.Fatalf("seed %d, record %d: change %d without old row is %v, want %v", seed, i, j, got, want)
			}
		}
	}
}

// seal gives a body the checksum that a real record of these bytes has.
func seal(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func FuzzRecord(f *testing.F) {
	for _, r := range goldenRecords() {
		var e Encoder
		b, err := e.Append(nil, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:len(b)-wireTrailerLen])
	}
	f.Add([]byte{})
	f.Add([]byte("LTHC\x02"))
	f.Fuzz(func(t *testing.T, body []byte) {
		var d Decoder
		var first Record
		_ = d.Decode(&first, body) // without a valid checksum: only must not panic
		if err := d.Decode(&first, seal(body)); err != nil {
			return
		}
		if n := cap(first.mem.values); n > len(body)+8 {
			t.Fatalf("%d values allocated for %d bytes", n, len(body))
		}
		var e Encoder
		b, err := e.Append(nil, &first)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		var second Record
		if err := d.Decode(&second, b); err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if second.Dump() != first.Dump() {
			t.Fatalf("decoded again\n%s\nwant\n%s", second.Dump(), first.Dump())
		}
		if c, err := e.Append(nil, &second); err != nil || !bytes.Equal(b, c) {
			t.Fatalf("encoding is not stable: %x, then %x (%v)", b, c, err)
		}
	})
}

func encode(t *testing.T, r *Record) []byte {
	t.Helper()
	var e Encoder
	b, err := e.Append(nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	good := encode(t, goldenRecords()["changes"])
	body := good[:len(good)-wireTrailerLen]
	with := func(at int, v ...byte) []byte {
		b := bytes.Clone(body)
		copy(b[at:], v)
		return seal(b)
	}
	for _, tc := range []struct {
		name string
		b    []byte
		want string
		is   error
	}{
		{"empty", nil, "not a lethe record", ErrNotRecord},
		{"json", []byte(`{"payload":{}}`), "not a lethe record", ErrNotRecord},
		{"future", with(offVersion, 2), "version 2, this program reads up to 1", ErrFutureVersion},
		{"future of another length", []byte("LTHC\x09x"), "version 9", ErrFutureVersion},
		{"version 0", with(offVersion, 0), "version 0 does not exist", nil},
		{"cut", good[:len(good)-1], "checksum", nil},
		{"header only", good[:wireHeaderLen], "shorter than an empty record", nil},
		{"flag", with(offFlags, 0x80), "unknown flags 0x80", nil},
		{"values", with(offValues, 0, 0xff, 0xff, 0xff), "do not fit", nil},
		{"changes", with(offChanges, 0xff, 0xff, 0xff, 0xff), "do not fit", nil},
		{"fewer changes", with(offChanges, 0, 0, 0, 5), "more than the header announces", nil},
		{"more changes", with(offChanges, 0, 0, 0, 7), "header announces 7 changes", nil},
		{"fewer values", with(offValues, 0, 0, 0, 1), "more than the header announces", nil},
		{"fewer commits", with(offCommits, 0, 0, 0, 1), "more than the header announces", nil},
		{"partition", with(offPartition, 0xff), "does not exist", nil},
		{"tag", with(wireHeaderLen, '?'), "unknown tag '?'", nil},
		{"change before commit", with(wireHeaderLen, 'I'), "change before any commit", nil},
		{"table number", with(wireHeaderLen, 'R', 9), "table number 9 was not defined", nil},
	} {
		var r Record
		err := new(Decoder).Decode(&r, tc.b)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.want)
		}
		if tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: error %v does not wrap %v", tc.name, err, tc.is)
		}
	}
}

// Every single damaged byte is noticed, none makes the decoder panic.
func TestDecodeNoticesEveryFlip(t *testing.T) {
	t.Parallel()
	good := encode(t, goldenRecords()["changes"])
	var r Record
	var d Decoder
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		if err := d.Decode(&r, b); err == nil {
			t.Errorf("byte %d flipped, no error", i)
		}
	}
	if err := d.Decode(&r, good); err != nil {
		t.Errorf("the whole record: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	tab, c := products(), &Commit{}
	wide := &Table{Columns: make([]Column, MaxColumns+1)}
	long := strings.Repeat("x", MaxNameBytes+1)
	for name, change := range map[string]Change{
		"no commit":    {Op: Truncate, Table: tab},
		"no table":     {Op: Insert, Commit: c},
		"unknown op":   {Op: 'Z', Commit: c, Table: tab},
		"short row":    {Op: Insert, Commit: c, Table: tab, New: Row{text("1")}},
		"unknown kind": {Op: Insert, Commit: c, Table: tab, New: Row{text("1"), {Kind: 'q'}, {}}},
		"too wide":     {Op: Truncate, Commit: c, Table: wide},
		"long column":  {Op: Truncate, Commit: c, Table: &Table{Columns: []Column{{Name: long}}}},
		"long prefix":  {Op: Message, Commit: c, Prefix: long},
	} {
		var e Encoder
		e.Begin(nil, &Record{Partitions: 1})
		before := e.Len()
		if err := e.AddChange(&change); err == nil {
			t.Errorf("%s: no error", name)
		}
		if e.Len() != before {
			t.Errorf("%s: %d bytes were left behind", name, e.Len()-before)
		}
	}
	var e Encoder
	e.Begin(nil, &Record{})
	if err := e.AddRaise(&Raise{Cause: long}); err == nil {
		t.Error("long cause: no error")
	}
}

// A consumer keys what it compiled by the pointer, so the pointer has to stay.
func TestDecoderInternsTables(t *testing.T) {
	t.Parallel()
	b := encode(t, goldenRecords()["changes"])
	var d Decoder
	var first, second Record
	if err := errors.Join(d.Decode(&first, b), d.Decode(&second, bytes.Clone(b))); err != nil {
		t.Fatal(err)
	}
	for i := range first.Changes {
		if first.Changes[i].Table != second.Changes[i].Table {
			t.Errorf("change %d: another *Table in the second record", i)
		}
	}
	altered := goldenRecords()["changes"]
	altered.Changes = altered.Changes[:1]
	altered.Changes[0].Table.Columns[2].Type = 701
	var third Record
	if err := d.Decode(&third, encode(t, altered)); err != nil {
		t.Fatal(err)
	}
	if third.Changes[0].Table == first.Changes[0].Table {
		t.Error("an altered table has the pointer of the old one")
	}
}

func TestDecoderBoundsItsMemory(t *testing.T) {
	t.Parallel()
	var d Decoder
	var r Record
	for i := range maxInterned + 10 {
		b := encode(t, &Record{Changes: []Change{{Op: Truncate, Commit: &Commit{}, Table: &Table{ID: uint32(i)}}}})
		if err := d.Decode(&r, b); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(d.interned); got > maxInterned {
		t.Errorf("%d tables remembered, want at most %d", got, maxInterned)
	}
}

func TestDecodeAllocatesNothingPerValue(t *testing.T) {
	r := &Record{Partitions: 1}
	tab, c := products(), &Commit{XID: 1}
	for i := range 1000 {
		r.Changes = append(r.Changes, Change{Op: Insert, Commit: c, Ordinal: uint32(i), Table: tab,
			New: Row{text("1"), text("some name"), text("2.50")}})
	}
	b := encode(t, r)
	var d Decoder
	var into Record
	if err := d.Decode(&into, b); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(20, func() {
		if err := d.Decode(&into, b); err != nil {
			t.Fatal(err)
		}
	}); got > 0 {
		t.Errorf("decoding into a used record: %v allocations, want 0", got)
	}
	var e Encoder
	buf := make([]byte, 0, 2*len(b))
	if got := testing.AllocsPerRun(20, func() {
		if _, err := e.Append(buf, r); err != nil {
			t.Fatal(err)
		}
	}); got > 0 {
		t.Errorf("encoding into a used buffer: %v allocations, want 0", got)
	}
}

func TestAppendKeepsWhatStandsBefore(t *testing.T) {
	t.Parallel()
	var e Encoder
	r := goldenRecords()["raise"]
	b, err := e.Append([]byte("before"), r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b, []byte("before")) || !reflect.DeepEqual(b[6:], encode(t, r)) {
		t.Errorf("record behind a prefix differs from the record alone: %x", b)
	}
}

func BenchmarkDecode(b *testing.B) {
	r := &Record{Partitions: 1}
	tab, c := products(), &Commit{XID: 1}
	for i := range 1000 {
		r.Changes = append(r.Changes, Change{Op: Update, Commit: c, Ordinal: uint32(i), Table: tab,
			New: Row{text("12345"), text(strings.Repeat("n", 200)), text("2.50")}})
	}
	var e Encoder
	raw, err := e.Append(nil, r)
	if err != nil {
		b.Fatal(err)
	}
	var d Decoder
	var into Record
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Decode(&into, raw); err != nil {
			b.Fatal(err)
		}
	}
}
