package publication

import (
	"context"
	"fmt"
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
// runs, and mends it. One goroutine at a time uses it.
type Watcher struct {
	cfg  Config
	uses []rules.TableUse
	// seen is what each table looked like at the last check.
	seen map[string]string
}

// NewWatcher watches for these uses; a reload of the rules makes a new one.
// Locks are waited for half a second and once only: the next check comes soon,
// and another table may be in worse need.
func NewWatcher(cfg Config, uses []rules.TableUse) *Watcher {
	cfg.LockTimeout, cfg.Attempts = WatchInterval/2, 1
	return &Watcher{cfg: cfg, uses: uses}
}

// Check does what Sync does, which is nothing as a rule, and compares the
// tables with the last check. The first call compares with nothing: make it
// before the cache is used. Changes is to be acted on beside an error, too.
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
	changes, err := Sync(ctx, conn, w.cfg, w.uses)
	now := make(map[string]string, len(tables))
	for _, t := range tables {
		if name := t.qualified(); slices.Contains(names, name) {
			now[name] = t.fingerprint()
		}
	}
	for name, before := range w.seen {
		// A table that is gone counts too: its rows went without a word.
		if now[name] != before {
			changes.Altered = append(changes.Altered, name)
		}
	}
	slices.Sort(changes.Altered)
	w.seen = now
	return changes, err
}

// fingerprint changes with everything that changes rows behind the log's back.
// The file of a table is another one after a rewrite or a TRUNCATE (which is
// published, except that of a single partition); VACUUM FULL and CLUSTER also
// give it a new one, and are paid for with one raise too many.
func (t *table) fingerprint() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", t.oid)
	for _, c := range t.columns {
		fmt.Fprintf(&b, " %q", c.Name)
	}
	for _, m := range t.members {
		fmt.Fprintf(&b, " %d/%d", m.OID, m.File)
	}
	return b.String()
}
