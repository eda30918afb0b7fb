package client

import (
	"testing"

	"github.com/lethe-cache/lethe/coherence"
)

// What is read often is reported; what is not is nobody's business.
func TestHotKeysAreReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := w.open(Options{HotInterval: -1}, hooks{})
	for range 200 {
		c.heat.add("product", "product:1", 1, 1, c.now())
		c.heat.add("user", "user:7", 2, 2, c.now())
	}
	c.heat.add("product", "product:2", 3, 1, c.now())
	must(c.reportHotOnce(t.Context(), HotIntervalDefault))
	store := c.store.Load()
	hot, err := store.Hot(t.Context(), "product", 10)
	must(err)
	if len(hot) != 1 || hot[0].Name != c.full("product:1") || hot[0].PerMinute <= 0 {
		t.Errorf("hot products: %+v", hot)
	}
	hot, err = store.Hot(t.Context(), "user", coherence.HotMax)
	must(err)
	if len(hot) != 1 || hot[0].Name != c.full("user:7") {
		t.Errorf("hot users: %+v", hot)
	}
}
