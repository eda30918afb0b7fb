package client

import "testing"

// A question is asked after an epoch began and before its control data was
// read. What was broadcast in between is known from that data, and never comes
// as a message: the answer may be from before it.
func TestEpochMarksWhatWasAskedBeforeIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	w.deafen(b)
	b.bump("test")
	w.during(t.Context(), holdGet(b), e, "item:1", func() {
		w.write("item:1", 110)
		ok, err := b.load(w.ctx())
		w.must(err)
		w.want("control was read", ok, true)
	})
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
}
