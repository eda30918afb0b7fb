package cdc

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkDecode is what a row costs between the socket's buffer and the gate:
// updates of five columns, 200 bytes of text in one of them, in transactions of
// so many rows, cut into segments as the receiver cuts them.
func BenchmarkDecode(b *testing.B) {
	for _, rows := range []int{1, 100} {
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			d := newDecoder(nil)
			r := &receiver{maxChanges: segmentChanges, maxSize: segmentSize, dec: d, seg: newSegment(), out: nil}
			update := msg{'U'}.u32(1).u8('N').u16(5).text("123456").text("42").text("7").text(strings.Repeat("x", 200)).text("2026-01-02 03:04:05.678901+00")
			if err := d.decode(r.seg, 0, relationMsg(1, "bench", 'd', "id", "category", "amount", "body", "changed")); err != nil {
				b.Fatal(err)
			}
			begin, commit, n := beginMsg(7, 1000), commitMsg(1000, 1050), 0
			decode := func(m msg) {
				if err := d.decode(r.seg, 0, m); err != nil {
					b.Fatal(err)
				}
				if r.full() {
					r.seg = r.next()
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if n%rows == 0 {
					decode(begin)
				}
				decode(update)
				if n++; n%rows == 0 {
					decode(commit)
				}
			}
		})
	}
}
