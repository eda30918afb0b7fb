package coherence

import (
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// Names that are awkward in a cluster.
var awkward = []string{
	"product:1", "shop:product:1", "shop:{42}:x", "shop:{}:x", "a}b", "a}b{c}", "{", "}", "{}", "{a", "a{b", "{a}{b}", "a{{b}}c",
	"é:ü", "with space", "nul\x00byte", "", "{user}:1", "a{}b{c}d",
}

func TestLayoutKeepsToOneSlot(t *testing.T) {
	t.Parallel()
	for _, cluster := range []bool{false, true} {
		l := NewLayout("shop", cluster)
		seen := make(map[string]string)
		for _, name := range awkward {
			for kind, key := range map[string]string{
				"ticket": l.Ticket(name), "header": l.TagHeader(name), "index": l.TagIndex(name),
			} {
				if got, want := Slot(key), Slot(name); got != want {
					t.Errorf("%s of %q is %q in slot %d, the name is in %d", kind, name, key, got, want)
				}
				if was, ok := seen[key]; ok {
					t.Errorf("%q is the %s of %q and also %s", key, kind, name, was)
				}
				seen[key] = kind + " of " + name
			}
			cell, _ := l.Cell(name)
			if cluster && Slot(cell) != Slot(name) {
				t.Errorf("cell of %q is %q in slot %d, want %d", name, cell, Slot(cell), Slot(name))
			}
		}
		control := Slot(l.Control("source"))
		for _, part := range []string{"class:product", "class:*", "v", "purges", "last", "named", "stream"} {
			if Slot(l.Control(part)) != control {
				t.Errorf("control key %q is in another slot", l.Control(part))
			}
		}
	}
}

func TestLayoutNames(t *testing.T) {
	t.Parallel()
	l := NewLayout("shop", false)
	c := NewLayout("shop", true)
	for _, v := range []struct{ got, want string }{
		{l.Name("product:1"), "shop:product:1"},
		{NewLayout("", false).Name("product:1"), "product:1"},
		{l.Versioned("shop:product:1", 1), "shop:product:1"},
		{l.Versioned("shop:product:1", 2), "shop:product:1@2"},
		{l.Ticket("shop:product:1"), "{shop:product:1}:t"},
		{l.Ticket("shop:{1}"), "shop:{1}:t"},
		{l.TagHeader("shop:category:7"), "lethe:h:{shop:category:7}"},
		{l.TagHeader("shop:{7}"), "lethe:h:shop:{7}"},
		{l.TagIndex("shop:category:7"), "lethe:i:{shop:category:7}"},
		{l.Control("source"), "lethe:{c:shop}:source"},
		{l.Control("class:*"), "lethe:{c:shop}:class:*"},
		{l.CellKey(0), "lethe:{c:shop}:b:0"},
		{l.CellKey(1023), "lethe:{c:shop}:b:1023"},
	} {
		if v.got != v.want {
			t.Errorf("%q, want %q", v.got, v.want)
		}
	}
	for _, slot := range []int{0, 1, 5460, 16383} {
		if key := c.Watermark(slot); Slot(key) != slot {
			t.Errorf("watermark %q is in slot %d, want %d", key, Slot(key), slot)
		}
		if key := c.CellKey(slot); Slot(key) != slot {
			t.Errorf("cell %q is in slot %d, want %d", key, Slot(key), slot)
		}
	}
	for slot := 0; slot < Slots; slot += 997 {
		if c.tags[slot] != slotTag(slot) {
			t.Errorf("slot %d: %q is not the least number, %q is", slot, c.tags[slot], slotTag(slot))
		}
	}
}

func TestBucketIsFNV(t *testing.T) {
	t.Parallel()
	l := NewLayout("", false)
	for i := range 1000 {
		name := "name:" + strconv.Itoa(i)
		h := fnv.New64a()
		_, _ = h.Write([]byte(name))
		bucket := h.Sum64() % BucketsSingle
		key, field := l.Cell(name)
		if want := l.CellKey(int(bucket / 64)); key != want || field != strconv.Itoa(int(bucket%64)) {
			t.Fatalf("%q: cell %q field %q, want bucket %d", name, key, field, bucket)
		}
	}
}

func TestSlotIsRedis(t *testing.T) {
	t.Parallel()
	// From the specification of Redis Cluster and its servers.
	for key, want := range map[string]int{"123456789": 12739, "foo": 12182, "{user1000}.following": 3443, "foo{}{bar}": 8363, "foo{{bar}}zap": 4015} {
		if got := Slot(key); got != want {
			t.Errorf("Slot(%q) = %d, want %d", key, got, want)
		}
	}
}

// fieldList and the grouping of a batch lose no bucket and invent none.
func TestRaisedCoversBatch(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	s := &Store{layout: NewLayout("shop", false)}
	for range 50 {
		batch := make([]Invalidation, 1+r.IntN(2000))
		want := make(map[string]bool)
		for i := range batch {
			batch[i].Name = "shop:" + strconv.Itoa(r.IntN(100_000))
			key, field := s.layout.Cell(batch[i].Name)
			want[key+" "+field] = true
		}
		cells, fields := s.raised(batch)
		got := make(map[string]bool)
		for i := range cells {
			for _, f := range splitFields(fields[i]) {
				got[cells[i]+" "+f] = true
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d buckets, want %d", len(got), len(want))
		}
		for k := range want {
			if !got[k] {
				t.Fatalf("bucket %s is not raised", k)
			}
		}
	}
}

func splitFields(list string) []string { return strings.Fields(list) }
