package publication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

// WatchInterval is how often Check is to be called. Without the guard it bounds
// how long a DDL that takes a replica identity away can break the application's
// updates.
const WatchInterval = time.Second

// Watcher notices what DDL has done to the tables of the rules while Lethe
// runs, and mends it. What it has seen is stored where that is possible, so
// that what happened while no Lethe ran is noticed by the next one. One
// goroutine at a time uses it.
type Watcher struct {
	cfg  Config
	uses []rules.TableUse
	// seen is what each table looked like at the last check; nil before the
	// first.
	seen map[string]look
	// stored says that the database holds seen.
	stored bool
}

// NewWatcher watches for these uses; a reload of the rules makes a new one.
// Locks are waited for half a second and once only: the next check comes soon,
// and another table may be in worse need.
func NewWatcher(cfg Config, uses []rules.TableUse) *Watcher {
	cfg.LockTimeout, cfg.Attempts = WatchInterval/2, 1
	return &Watcher{cfg: cfg, uses: uses}
}

// Check does what Sync does, which is nothing as a rule, and compares the
// tables with the last check. The first call compares with what an earlier
// Watcher has stored: make it before the cache is used. Changes is to be acted
// on beside an error, too.
func (w *Watcher) Check(ctx context.Context, conn Conn) (Changes, error) {
	// Before the repair: what changes between the two is seen the next time.
	names := make([]string, len(w.uses))
	for i, u := range w.uses {
		names[i] = u.QualifiedName()
	}
	tables, err := readTables(ctx, conn, w.cfg, names)
	if err != nil {
		return Changes{}, err
	}
	stored, err := storable(ctx, conn)
	if err != nil {
		return Changes{}, err
	}
	before := w.seen
	if before == nil && stored {
		if before, err = readSeen(ctx, conn, w.cfg.Name); err != nil {
			return Changes{}, err
		}
	}
	changes, syncErr := Sync(ctx, conn, w.cfg, w.uses)
	own := changes.touched
	now := make(map[string]look, len(tables))
	for _, t := range tables {
		if name := t.qualified(); slices.Contains(names, name) {
			now[name] = t.look()
		}
	}
	// What Sync has moved is now published as it should be.
	if len(own) > 0 {
		after, err := readTables(ctx, conn, w.cfg, own)
		if err != nil {
			return changes, errors.Join(syncErr, err)
		}
		for _, t := range after {
			if l, ok := now[t.qualified()]; ok {
				l.published = t.look().published
				now[t.qualified()] = l
			}
		}
	}
	var altered, entered []string
	if before != nil {
		altered, entered = differences(before, now, own)
	}
	if stored && (!w.stored || !maps.Equal(before, now)) {
		if err := storeSeen(ctx, conn, w.cfg, before, now, altered, entered); err != nil {
			// Raised from memory till it is stored, and so that it will be, compared
			// with the same again: taken as seen, it would go into the table with
			// the next check, which has nothing to report, and be lost with a
			// process whose raise is not durable yet.
			changes.Stored = false
			syncErr = errors.Join(syncErr, err)
			stored, now = false, before
		}
	}
	w.seen, w.stored = now, stored
	changes.Altered = append(changes.Altered, altered...)
	changes.Entered = append(changes.Entered, entered...)
	slices.Sort(changes.Altered)
	slices.Sort(changes.Entered)
	return changes, syncErr
}

// differences tells which tables a DDL has changed, and which somebody else has
// published otherwise than before. own are those that Sync has just moved.
func differences(before, now map[string]look, own []string) (altered, entered []string) {
	for name, was := range before {
		// A table that is gone counts too: its rows went without a word.
		is, exists := now[name]
		if is.table != was.table {
			altered = append(altered, name)
		}
		if exists && is.published != was.published && is.published != "" && !slices.Contains(own, name) {
			entered = append(entered, name)
		}
	}
	for name, is := range now {
		if _, known := before[name]; !known && is.published != "" && !slices.Contains(own, name) {
			entered = append(entered, name)
		}
	}
	return altered, entered
}

// look is what is compared of a table.
type look struct {
	// table changes with everything that changes rows behind the log's back.
	// The file of a table is another one after a rewrite or a TRUNCATE (which
	// is published, except that of a single partition); VACUUM FULL and CLUSTER
	// also give it a new one, and are paid for with one raise too many.
	table string
	// published says how it is published; empty: not at all.
	published string
}

const lookSeparator = "\n"

func (l look) String() string { return l.table + lookSeparator + l.published }

func parseLook(s string) look {
	table, published, _ := strings.Cut(s, lookSeparator) // names are quoted: none holds a line break
	return look{table, published}
}

func (t *table) look() look {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", t.oid)
	for _, c := range t.columns {
		fmt.Fprintf(&b, " %q", c.Name)
	}
	for _, m := range t.members {
		fmt.Fprintf(&b, " %d/%d", m.OID, m.File)
	}
	l := look{table: b.String()}
	b.Reset()
	for _, name := range slices.Sorted(maps.Keys(t.in)) {
		fmt.Fprintf(&b, "%q", name)
		for _, c := range slices.Sorted(slices.Values(t.in[name])) {
			fmt.Fprintf(&b, " %q", c)
		}
		b.WriteByte(';')
	}
	l.published = b.String()
	return l
}
