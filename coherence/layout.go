package coherence

import (
	"strconv"
	"strings"
)

// LayoutVersion is the version of the names and formats in Redis. It stands in
// the source record; a client that does not know it neither fills from
// standbys nor registers under tags.
const LayoutVersion = 1

// The sizes of the table of positions.
const (
	// BucketsSingle is the number of buckets on one node (or with Sentinel),
	// BucketsPerCell of them in each hash.
	BucketsSingle  = 65536
	BucketsPerCell = 64
	// BucketsCluster is the number of buckets of each slot in Cluster.
	BucketsCluster = 16
	// Slots is the number of hash slots of Redis Cluster.
	Slots = 16384
)

// ReservedNamespace is refused as a namespace, because everything that belongs
// to Lethe itself begins with it.
const ReservedNamespace = "lethe"

// Layout gives the name of every key. Names of entries and tags are full
// names: with the namespace. It is immutable and safe for concurrent use.
type Layout struct {
	namespace string
	cluster   bool
	control   string
	// tags[slot] is the least decimal number that hashes to slot; in a single
	// layout only slot 0 is filled.
	tags []string
	// cells are the names of the table's hashes: all of them on one node, one
	// for each slot in Cluster.
	cells []string
}

// NewLayout returns the layout of a namespace, on one node or in a cluster.
func NewLayout(namespace string, cluster bool) *Layout {
	l := &Layout{namespace: namespace, cluster: cluster, control: "lethe:{c:" + namespace + "}:"}
	if !cluster {
		l.tags = []string{slotTag(0)}
		l.cells = make([]string, BucketsSingle/BucketsPerCell+1)
		for i := range l.cells {
			l.cells[i] = l.control + "b:" + strconv.Itoa(i)
		}
		l.cells[len(l.cells)-1] = l.control + "b:floor"
		return l
	}
	l.tags = slotTags()
	l.cells = make([]string, Slots)
	for i := range l.cells {
		l.cells[i] = "lethe:{" + l.tags[i] + "}:b:" + namespace
	}
	return l
}

// Namespace returns the namespace, "" if names are used as they are written.
func (l *Layout) Namespace() string { return l.namespace }

// Cluster reports whether the table is kept per slot.
func (l *Layout) Cluster() bool { return l.cluster }

// Buckets is N: the number of buckets on one node, or of each slot in Cluster.
func (l *Layout) Buckets() int {
	if l.cluster {
		return BucketsCluster
	}
	return BucketsSingle
}

// Name is the full name of a key or tag as the user writes it.
func (l *Layout) Name(rendered string) string {
	if l.namespace == "" {
		return rendered
	}
	return l.namespace + ":" + rendered
}

// Versioned is the key of an entry whose class has value version n; versions 0
// and 1 are the plain name.
func (l *Layout) Versioned(name string, n uint32) string {
	if n <= 1 {
		return name
	}
	return name + "@" + strconv.FormatUint(uint64(n), 10)
}

// Ticket is the key of the ticket of a plain entry, in the entry's slot.
func (l *Layout) Ticket(name string) string { return l.beside("", name, ":t", "lethe:t:") }

// TagHeader is the hash {pos, seq} of a tag (or of a key used as a name).
func (l *Layout) TagHeader(name string) string { return l.beside(headerPrefix, name, "", headerPrefix) }

// TagIndex is the hash member -> seq of a tag (or of a key used as a name).
func (l *Layout) TagIndex(name string) string { return l.beside(indexPrefix, name, "", indexPrefix) }

// beside names a key in the slot of name. A name with a hash tag of its own
// keeps it; any other is made a hash tag. A name whose braces make neither
// possible ("a}b": braces around it would end the tag early) is placed by the
// number of its slot.
func (l *Layout) beside(prefix, name, suffix, odd string) string {
	if _, ok := hashTag(name); ok {
		return prefix + name + suffix
	}
	if strings.IndexByte(name, '}') >= 0 || name == "" {
		return odd + "{" + l.tagOf(Slot(name)) + "}:" + name
	}
	return prefix + "{" + name + "}" + suffix
}

func (l *Layout) tagOf(slot int) string {
	if slot < len(l.tags) {
		return l.tags[slot]
	}
	return slotTag(slot)
}

// Control is the key of a part of the control data: source, class:<class>,
// class:*, v, purges, last, named or stream. All of them are in one slot. The
// broadcast's channel has the name of the stream's key.
func (l *Layout) Control(part string) string { return l.control + part }

// Cell is the hash and the field that hold the bucket of a name.
func (l *Layout) Cell(name string) (key, field string) {
	cell, bucket := l.cell(name)
	return l.cells[cell], decimals[bucket]
}

// cell is Cell by numbers.
func (l *Layout) cell(name string) (cell, field int) {
	h := fnv1a(name)
	if l.cluster {
		return Slot(name), int(h % BucketsCluster)
	}
	b := int(h % BucketsSingle)
	return b / BucketsPerCell, b % BucketsPerCell
}

// CellKey is the name of a hash of the table by its number: below 1024 on one
// node, the slot in Cluster.
func (l *Layout) CellKey(n int) string { return l.cells[n] }

// floor is one more hash of the table on one node: its single bucket, "0", is
// part of every other. Raising it raises them all at once, which is what a
// large batch does. In Cluster a table is one hash, and there is none.
func (l *Layout) floor() string {
	if l.cluster {
		return ""
	}
	return l.cells[BucketsSingle/BucketsPerCell]
}

// Watermark is the hash partition -> position|run_id of the master whose least
// slot is given; 0 on one node.
func (l *Layout) Watermark(leastSlot int) string {
	return "lethe:{" + l.tagOf(leastSlot) + "}:w:" + l.namespace
}

// decimals are the field names of buckets.
var decimals = func() (d [BucketsPerCell]string) {
	for i := range d {
		d[i] = strconv.Itoa(i)
	}
	return d
}()
