package kafka

import (
	"strconv"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

func text(s string) change.Value { return change.Value{Kind: change.Text, Bytes: []byte(s)} }

func table(identity change.Identity, keys ...bool) *change.Table {
	t := &change.Table{Schema: "public", Name: "t", Identity: identity}
	for i, k := range keys {
		t.Columns = append(t.Columns, change.Column{Name: strconv.Itoa(i), Key: k})
	}
	return t
}

// Insert, update and delete of one row meet in one partition, whatever else
// they carry; a row whose key changed is in both.
func TestRowsMeet(t *testing.T) {
	t.Parallel()
	const n = 12
	def, full := table(change.IdentityDefault, true, false), table(change.IdentityFull, true, true)
	spread := make(map[int]int)
	for i := range 1000 {
		id, other := text(strconv.Itoa(i)), text(strconv.Itoa(i+5000))
		for _, tab := range []*change.Table{def, full} {
			first, second := partitionsOf(&change.Change{Op: change.Insert, Table: tab, New: change.Row{id, text("a")}}, n)
			if second != -1 {
				t.Fatalf("an insert goes to %d and %d", first, second)
			}
			spread[first]++
			same := []change.Change{
				{Op: change.Update, Table: tab, New: change.Row{id, text("b")}},
				{Op: change.Update, Table: tab, Old: change.Row{id, text("a")}, New: change.Row{id, text("b")}},
				{Op: change.Delete, Table: tab, Old: change.Row{id, {}}},
				{Op: change.Delete, Table: tab, Old: change.Row{id, text("z")}},
			}
			for j := range same {
				if p, q := partitionsOf(&same[j], n); p != first || q != -1 {
					t.Fatalf("row %d, change %d: partitions %d and %d, its insert was in %d", i, j, p, q, first)
				}
			}
			newHome, _ := partitionsOf(&change.Change{Op: change.Insert, Table: tab, New: change.Row{other, text("a")}}, n)
			p, q := partitionsOf(&change.Change{Op: change.Update, Table: tab, Old: change.Row{id, {}}, New: change.Row{other, text("a")}}, n)
			if p != newHome || newHome != first && q != first || newHome == first && q != -1 {
				t.Fatalf("row %d moved from partition %d to %d, and the change goes to %d and %d", i, first, newHome, p, q)
			}
		}
	}
	for p := range n {
		if spread[p] < 2000/n/2 || spread[p] > 2*2000/n {
			t.Errorf("partition %d has %d of 2000 rows", p, spread[p])
		}
	}
}

func TestTruncatesAndMessagesHaveOnePlace(t *testing.T) {
	t.Parallel()
	for _, c := range []change.Change{
		{Op: change.Truncate, Table: table(change.IdentityDefault, true)},
		{Op: change.Message, Prefix: "lethe", Content: []byte("{}")},
		{Op: change.Message},
		{Op: change.Insert, Table: table(change.IdentityNothing, false), New: change.Row{text("a")}},
	} {
		if p, q := partitionsOf(&c, 7); p < 0 || p >= 7 || q != -1 {
			t.Errorf("%s goes to %d and %d of 7", c.Op, p, q)
		}
	}
}

// The places are part of what two versions of the program must agree on while
// they read one topic: a change of them needs a new hashVersion.
func TestPlacesAreFrozen(t *testing.T) {
	t.Parallel()
	want := []int{4, 0, 6, 7, 11, 1, 6, 5}
	tab := table(change.IdentityDefault, true)
	got := make([]int, len(want))
	for i := range got {
		got[i], _ = partitionsOf(&change.Change{Op: change.Insert, Table: tab, New: change.Row{text(strconv.Itoa(i))}}, 12)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("rows 0 to 7 are in %v, want %v", got, want)
		}
	}
	if got, want := mapVersion(12), uint32(1<<24|12); got != want {
		t.Errorf("map version %#x, want %#x", got, want)
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	t.Parallel()
	var b backoff
	for i := range 40 {
		d := b.next()
		most := min(backoffMin<<min(i, 10), backoffMax)
		if d < most/2 || d > most {
			t.Errorf("wait %d is %v, want %v to %v", i, d, most/2, most)
		}
	}
	if b.reset(); b.next() > backoffMin {
		t.Error("a reset backoff waits long")
	}
}
