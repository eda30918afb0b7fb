package invalidator

import (
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/direct"
)

const benchRules = `
version: 1
namespace: %s
entries:
  kept: { key: "kept:{id}" }
rules:
  - { name: kept, table: public.products, keys: [ "kept:{id}" ] }
`

// BenchmarkWorker applies transactions of 100 changes of different rows, from a
// log that is always full, to a Redis on the same machine.
func BenchmarkWorker(b *testing.B) {
	const rows = 100
	w := newWorld(b, worldConfig{rules: benchRules})
	w.log = direct.New(direct.Config{Keep: 1})
	w.ready()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		changes := make([]change.Change, rows)
		for i := range changes {
			n++
			changes[i] = change.Change{Op: change.Update, Table: shopTables["products"], New: change.Row{
				{Kind: change.Text, Bytes: []byte(itoa(n % 100_000))}, {Kind: change.Text, Bytes: []byte("n")},
			}}
		}
		changes = w.nextCommit(changes...)
		w.seq++
		if err := w.log.Append(b.Context(), stream.Batch{Seq: w.seq, Record: &change.Record{Source: w.source, V: w.lsn + 50, Changes: changes}}); err != nil {
			b.Fatal(err)
		}
	}
	w.settle()
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "changes/s")
}

// BenchmarkWorkerSingle is the way of one change through an idle worker.
func BenchmarkWorkerSingle(b *testing.B) {
	w := newWorld(b, worldConfig{rules: benchRules})
	w.log = direct.New(direct.Config{Keep: 1})
	w.ready()
	b.ReportAllocs()
	for b.Loop() {
		w.commit(update("products", "1", "n"))
		for w.log.Durable() < w.seq {
			<-w.log.Advanced()
		}
	}
}
