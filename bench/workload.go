package main

import (
	"context"
	"fmt"
)

// sentinelRows end each workload in one transaction of their own. When the
// keys of all of them are gone everything before them is done, also where the
// log has partitions: 256 keys miss one of 12 partitions once in 10^9 runs.
const sentinelRows = 256

// workload is one stretch of the log: the updates of a range of rows, each row
// once, so that coalescing has nothing to save.
type workload struct {
	name         string
	first        int64
	transactions int
	rows         int
	// begin is the insert position before the first transaction, end the one
	// behind the sentinels and before the trailer.
	begin, end string
}

// workloads returns A and B on separate rows, and how many rows the table needs.
func workloads(s sizes) (list []*workload, tableRows int) {
	next := int64(1)
	for _, w := range []*workload{
		{name: "A", transactions: s.ATransactions, rows: s.ARows},
		{name: "B", transactions: s.BTransactions, rows: 1},
	} {
		w.first = next
		next += int64(w.transactions*w.rows) + sentinelRows
		list = append(list, w)
	}
	// One row more for the trailer.
	return list, int(next)
}

// size is how many rows a drain moves, sentinels included.
func (w *workload) size() int { return w.transactions*w.rows + sentinelRows }

// ids are the first row of the workload and the one behind its last.
func (w *workload) ids() (from, to int64) { return w.first, w.first + int64(w.size()) }

// sentinels are the first sentinel row and the row behind the last.
func (w *workload) sentinels() (from, to int64) {
	_, to = w.ids()
	return to - sentinelRows, to
}

// slot is the one that stands before the workload; drains use copies of it.
func (w *workload) slot() string { return map[string]string{"A": "bench_a", "B": "bench_b"}[w.name] }

// rest is how many rows are left of the part that begins at ahead.
func (w *workload) rest(ahead float64) int { return int(float64(w.size()) * (1 - ahead)) }

// generate writes the workload into the log, behind a slot that keeps it there.
func (w *workload) generate(ctx context.Context, db *database, trailer int64) error {
	if err := db.createSlot(ctx, w.slot()); err != nil {
		return err
	}
	mark := func(lsn *string) error {
		if err := db.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(lsn); err != nil {
			return fmt.Errorf("read where workload %s stands in the log: %w", w.name, err)
		}
		return nil
	}
	if err := mark(&w.begin); err != nil {
		return err
	}
	if err := db.update(ctx, w.first, w.transactions, w.rows); err != nil {
		return err
	}
	first, _ := w.sentinels()
	if err := db.update(ctx, first, 1, sentinelRows); err != nil {
		return err
	}
	if err := mark(&w.end); err != nil {
		return err
	}
	// pg_recvlogical stops at the first record behind its end; without one it
	// would wait for a keepalive.
	return db.update(ctx, trailer, 1, 1)
}

// keyPrefix is that of the keys of bench rows; rulesYAML says the same to lethe.
const keyPrefix = "bench:row:"

// rulesYAML is what lethe runs under: one key for each changed row, as the
// consumers by hand make it.
const rulesYAML = `version: 1
namespace: bench
entries:
  row:
    key: row:{id}
rules:
  - name: bench row
    table: public.bench
    keys: ["row:{id}"]
`
