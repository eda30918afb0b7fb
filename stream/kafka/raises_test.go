package kafka_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// Many raises of one batch fill several records: a record of raises alone that
// the brokers find too large could never be written, and nothing behind it.
func TestRaisesFillSeveralRecords(t *testing.T) {
	t.Parallel()
	cfg := settings(t, fake(t).ListenAddrs())
	cfg.Partitions, cfg.MaxRecordBytes = 1, 2000
	w := writer(t, cfg)
	seen := streamtest.NewSeen()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	r := &change.Record{Source: streamtest.Source(), V: streamtest.V(1)}
	for i := range 100 {
		r.Raises = append(r.Raises, change.Raise{Cause: fmt.Sprint(i), Tables: []string{"public." + strings.Repeat("t", 200)}})
	}
	if err := w.Append(t.Context(), stream.Batch{Seq: 1, Record: r}); err != nil {
		t.Fatal(err)
	}
	raises := func() (n int) {
		for _, r := range seen.Locked(0) {
			n += len(r.Raises)
		}
		return n
	}
	seen.Until(t, "all raises", func() bool { return raises() == 100 })
	seen.UntilV(t, 1, streamtest.V(1))
	closeWriter(t, w)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	for i, r := range seen.Records(0) {
		if len(r.Raises) > 10 {
			t.Errorf("record %d holds %d raises, want no more than fit", i, len(r.Raises))
		}
	}
}
