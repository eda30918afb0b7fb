package client

import (
	"context"
	"strings"
	"testing"
)

// A service that caches nothing passes tokens on as well: without a Client a
// token says where the write stands in the log of its server, and whoever reads
// knows of which era that is.
func TestTokensWithoutAClient(t *testing.T) {
	t.Parallel()
	w := newWritten(t, func(_ *Client, ctx context.Context, conn Queryer) (string, error) { return Wrote(ctx, conn) })
	c, e, p, x, token := w.c, w.e, w.p, w.x, w.token
	// What is cached lacks the write, until the workers are past it.
	if bound := c.scopeOf(After(t.Context(), token)).bound; bound == unknownToken || bound.Era == 0 {
		t.Fatalf("bound of %s: %s", token, bound)
	}
	done := make(chan int64)
	go func() {
		v, _ := e.Get(After(context.Background(), token), "item:1")
		done <- v
	}()
	w.invalidate("item:1", x)
	w.beat(lsn(t, p), lsn(t, p))
	w.want("read your write", <-done, int64(2))
	c.fills.Wait() // the value is filled behind the reader's back
	loads := w.loads.Load()
	many, err := e.GetMany(After(t.Context(), token), []string{"item:1"})
	w.must(err)
	w.want("many", many["item:1"], int64(2))
	w.want("loads for it", w.loads.Load()-loads, int64(0))
	w.must(c.Barrier(t.Context(), token))

	here, err := readPlace(t.Context(), p)
	w.must(err)
	// Of several tokens the greatest holds, wherever each was put in.
	later := place{system: here.system, timeline: here.timeline, insert: 1 << 40}.String()
	for name, ctx := range map[string]context.Context{
		"inner": After(After(t.Context(), token), later), "outer": After(After(t.Context(), later), token),
		"mixed": c.After(After(t.Context(), later), token), "the other way": After(c.After(t.Context(), token), later),
	} {
		w.want(name, c.scopeOf(ctx).bound, c.boundOf(ctx, later))
	}
	// What names no position of this source asks for the database.
	other := place{system: here.system + 1, timeline: here.timeline, insert: 1}.String()
	for _, odd := range []string{"", "nonsense", other, strings.Repeat("z", placeDigits)} {
		w.want("bound of "+odd, c.scopeOf(After(t.Context(), odd)).bound, unknownToken)
	}
}
