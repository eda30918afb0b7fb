package cdc

import (
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
)

// A partition is announced right behind its root and before its first row; two
// relations before anything else are no partition and no root.
func TestDecodePartitionIsKnownByItsAnnouncement(t *testing.T) {
	t.Parallel()
	d, seg := newDecoder(nil), newSegment()
	del := func(id int, kind byte) msg { return msg{'D'}.u32(id).u8(kind).u16(2).text("9").u8('n') }
	truncate := msg{'T'}.u32(2).u8(0).u32(1).u32(2)
	got := feed(t, d, seg, beginMsg(7, 700),
		relationMsg(1, "root", 'f', "id", "c"), relationMsg(2, "leaf", 'd', "id", "c"), truncate, // both by name
		del(1, 'O'),
		relationMsg(1, "root", 'f', "id", "c"), relationMsg(2, "leaf", 'd', "id", "c"), del(1, 'O'), // by way of the root
		relationMsg(1, "root", 'f', "id", "c"), truncate, del(1, 'O'), // announced again
		relationMsg(1, "root", 'f', "id", "c"), relationMsg(2, "leaf", 'f', "id", "c"), del(1, 'O'), // the partition is altered
		relationMsg(1, "root", 'd', "id", "c"), relationMsg(2, "leaf", 'f', "id", "c"), del(1, 'K'), // then the root
		relationMsg(1, "root", 'd', "id", "c"), relationMsg(3, "more", 'n', "id", "c"), del(1, 'K'), // another partition
	)
	equal(t, got, []string{
		"truncate public.root", "truncate public.leaf", "delete public.root | old id='9' c=NULL",
		"delete public.root | old id='9' c=ABSENT",
		"truncate public.root", "truncate public.leaf", "delete public.root | old id='9' c=ABSENT",
		"delete public.root | old id='9' c=NULL",
		"delete public.root | old id='9' c=NULL",
		"delete public.root | old id='9' c=ABSENT",
	})
	changes := seg.rec.Changes
	for at, want := range map[int]change.Identity{2: 'f', 3: 'i', 6: 'i', 7: 'f', 8: 'f', 9: 'd'} {
		if got := changes[at].Table.Identity; got != want {
			t.Errorf("change %d is of a table with identity %c, want %c", at, got, want)
		}
	}
	if c := changes[3].Table.Columns; !c[0].Key || c[1].Key {
		t.Errorf("columns %+v, want the partition's identity: an update without an old row left id as it was, not c", c)
	}
	if c := changes[7].Table.Columns; !c[0].Key || !c[1].Key {
		t.Errorf("columns %+v, want all of them to identify", c)
	}
	feed(t, d, seg, relationMsg(1, "root", 'd', "id", "c"), relationMsg(3, "more", 'i', "c", "id"), del(1, 'K'))
	if c := seg.rec.Changes[len(seg.rec.Changes)-1].Table.Columns; c[0].Key || !c[1].Key {
		t.Errorf("columns %+v, want what both partitions log: one whole rows, the other c", c)
	}
	d.reset()
	next := newSegment()
	equal(t, feed(t, d, next, beginMsg(8, 800), relationMsg(1, "root", 'f', "id", "c"), del(1, 'O')), []string{"delete public.root | old id='9' c=NULL"})
}

// What the log has of an old row is what the partition's identity says, whatever
// the root's says.
func TestServerPartitionsUnderAnotherIdentity(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	c := connect(t, url)
	for _, table := range []string{"whole", "keyed", "moved"} {
		exec(t, c, `CREATE TABLE `+table+` (id int PRIMARY KEY, c int, n int NOT NULL) PARTITION BY RANGE (id)`)
		exec(t, c, `CREATE TABLE `+table+`_1 PARTITION OF `+table+` FOR VALUES FROM (0) TO (100)`)
	}
	exec(t, c, `ALTER TABLE whole REPLICA IDENTITY FULL`)
	exec(t, c, `ALTER TABLE keyed_1 REPLICA IDENTITY FULL`)
	exec(t, c, `CREATE UNIQUE INDEX moved_n ON moved_1 (n); ALTER TABLE moved_1 REPLICA IDENTITY USING INDEX moved_n`)
	exec(t, c, `CREATE PUBLICATION p FOR TABLE whole, keyed, moved WITH (publish_via_partition_root = true)`)
	w := newSink()
	start(t, url, w).streaming(t)
	w.take()
	for _, table := range []string{"whole", "keyed", "moved"} {
		exec(t, c, `INSERT INTO `+table+` VALUES (1, 7, 1), (2, NULL, 2)`)
		exec(t, c, `DELETE FROM `+table+` WHERE id = 1`)
		exec(t, c, `UPDATE `+table+` SET id = 3 WHERE id = 2`)
	}
	w.waitEvent(t, "update public.moved id='3' c=NULL n='2'")
	rows := func(table string) []string {
		return []string{"insert public." + table + " id='1' c='7' n='1'", "insert public." + table + " id='2' c=NULL n='2'"}
	}
	want := append(rows("whole"), "delete public.whole | old id='1' c=ABSENT n=ABSENT", "update public.whole id='3' c=NULL n='2' | old id='2' c=ABSENT n=ABSENT")
	want = append(want, rows("keyed")...)
	want = append(want, "delete public.keyed | old id='1' c='7' n='1'", "update public.keyed id='3' c=NULL n='2' | old id='2' c=NULL n='2'")
	want = append(want, rows("moved")...)
	want = append(want, "delete public.moved | old id=ABSENT c=ABSENT n='1'", "update public.moved id='3' c=NULL n='2'")
	equal(t, w.take(), want)
}
