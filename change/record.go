package change

// Source names the log that positions belong to. A new era begins whenever
// LSNs may repeat: another system, a promotion, a crash of the primary.
type Source struct {
	// Era is 0 while it is not known; stamps are not used then.
	Era      uint16
	SystemID uint64
	Timeline uint32
}

// Raise asks for the generation of classes to be raised: everything that was
// cached below it is forgotten at once.
type Raise struct {
	// Cause identifies the raise; each cause is applied once.
	Cause string
	// Reason is the cause's kind, for metrics and logs: one of the Reason
	// constants.
	Reason string
	// Classes are the entry classes; "*" is every class of the namespace.
	Classes []string
	// Tables, schema.name, stand for every class that their rules touch.
	Tables []string
	// X is the position of the commit that caused it, or zero.
	X Position
	// Bound is change.Bound of the primary's insert LSN when it was asked for.
	Bound Position
}

// The reasons of a Raise.
const (
	ReasonSlotLost    = "slot_lost"   // the slot is new, was lost or recreated
	ReasonSource      = "source"      // another system, timeline or instance
	ReasonPublication = "publication" // a table entered, or got more columns
	ReasonOverflow    = "overflow"    // the gate held too much
	ReasonTruncate    = "truncate"    // TRUNCATE
	ReasonDDL         = "ddl"         // a DDL changed rows without a row in the log
	ReasonLogGap      = "log_gap"     // offsets jumped inside a partition
	ReasonNodeLost    = "node_lost"   // a Redis node may have lost writes
	ReasonDeadLetter  = "dead_letter" // a change whose keys are unknown
	ReasonManual      = "manual"      // asked for by an operator
	ReasonOldValue    = "old_value"   // strict rule, old value not in the log
	ReasonCascade     = "cascade"     // depth or fan-out limit exceeded
	ReasonUnknownEra  = "unknown_era" // the era can not be stored
	ReasonMapChange   = "map_change"  // the partition map changed
	ReasonRules       = "rules"       // the rules changed

	// ReasonDependencies names no class by itself: the table of dependencies
	// changed, and workers are to read it before they go on.
	ReasonDependencies = "dependencies"
	ReasonLookup       = "lookup" // a lookup gave too many rows
)

// Record is the unit that travels from the reader to one partition's worker:
// changes of any number of commits, raises, or neither (a mark).
//
// A Record owns the memory that its rows alias; it may be recycled by its
// consumer once nothing refers to it.
type Record struct {
	// Source is the log that every position in the record belongs to.
	Source Source
	// V is the visibility position of PROTOCOL, as it stands *behind* this
	// record: every commit below V is visible on the primary, and what it
	// brought to this partition stands in this record or in earlier ones.
	// A worker that has applied the record has applied everything below V.
	V LSN
	// Partition and Partitions place the record: its own number and the size
	// of the map that it was written under.
	Partition, Partitions int
	// MapVersion is the version of that partition map.
	MapVersion uint32
	// InsertLSN says that the record came from a log that does not name the
	// start of its commits (Debezium's topics carry the row's LSN): every
	// Commit.LSN in it is 0, and so are Source and V. The worker reads the
	// primary's insert LSN once it has the record and uses that as X, an upper
	// bound of every commit in it; it takes Source from the same connection
	// and never derives V from such a record.
	InsertLSN bool
	Changes   []Change
	Raises    []Raise

	// mem is what a Decoder reuses when the record is decoded into again.
	mem recordMemory
}

// Position places an LSN of the record's source.
func (r *Record) Position(l LSN) Position { return Position{Era: r.Source.Era, LSN: l} }
