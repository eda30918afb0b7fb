package kafka

import "github.com/lethe-cache/lethe/change"

// The partition map says to which partition a change goes. It is a pure
// function of the row's key and the number of partitions, so that every
// writer, one after the other or by accident two at a time, agrees on it
// without having to store anything.
//
// Its version is (hash function << 24) + number of partitions. A topic's
// partitions can only become more, so the version only grows; it stands in
// every record. When it grows, keys move to other partitions, and the old and
// the new partition of a key are read by two workers in any order. That needs
// no barrier: invalidations commute. What has to be right is the watermark, the
// least V over all partitions: it must not pass a change that stands in a
// partition which nobody has looked at yet. It can not, because every V that
// is above the change of the map stands in a record that names the new number
// of partitions: who counts that V has to count those partitions too, and a new
// partition counts as nothing until its first record was applied.

// hashVersion is the version of partitionOf; a change of that function is a
// new map although the number of partitions is the same.
const hashVersion = 1

// mapVersion returns the version of the map over n partitions.
func mapVersion(n int) uint32 { return hashVersion<<24 | uint32(n) }

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// partitionsOf returns the partition of a change, and a second one if the
// row's key changed and the old key lives elsewhere: both get the change.
// second is -1 if there is none.
func partitionsOf(c *change.Change, n int) (first, second int) {
	switch {
	case c.Op == change.Message:
		// Applied once, wherever: any partition's V counts what it carries.
		return place(hashBytes(hashString(fnvOffset, c.Prefix), c.Content), n), -1
	case c.New == nil && c.Old == nil: // a truncate
		return place(hashTable(c.Table), n), -1
	case c.New == nil:
		return place(hashKey(c.Table, c.Old), n), -1
	}
	first, second = place(hashKey(c.Table, c.New), n), -1
	if c.Old != nil {
		if p := place(hashKey(c.Table, c.Old), n); p != first {
			second = p
		}
	}
	return first, second
}

// place mixes the hash before the remainder is taken: FNV's low bits are weak
// for keys that differ in their last digit only.
func place(h uint64, n int) int {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	return int(h % uint64(n))
}

func hashTable(t *change.Table) uint64 {
	return hashString(hashString(fnvOffset, t.Schema), t.Name)
}

// hashKey hashes the table and the row's replica identity. Under REPLICA
// IDENTITY FULL that is the whole row, which would send every update to two
// partitions; there the first column stands for the row, usually its id. Any
// function of the row would do: what matters is that a row's changes meet.
func hashKey(t *change.Table, row change.Row) uint64 {
	h := hashTable(t)
	for i := range t.Columns {
		if !t.Columns[i].Key && t.Identity != change.IdentityFull {
			continue
		}
		h = hashBytes(h, row[i].Bytes)
		if t.Identity == change.IdentityFull {
			break
		}
	}
	return h
}

// hashString and hashBytes end each part, so that ("a", "bc") and ("ab", "c")
// differ.
func hashString(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return (h ^ 0x1ff) * fnvPrime
}

func hashBytes(h uint64, b []byte) uint64 {
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	return (h ^ 0x1ff) * fnvPrime
}
