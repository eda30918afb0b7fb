package warmer

import (
	"context"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/rules"
)

// queries remembers how the load.sql of classes are to be run, which a round
// trip or a few had to find out. It is safe for concurrent use.
type queries struct {
	mu    sync.Mutex
	known map[string]catalog.Load
}

// queriesMax bounds what reloads leave behind: beyond it all are asked for anew.
const queriesMax = 10_000

// of returns how a class's load.sql is to be run.
func (q *queries) of(ctx context.Context, pool *pgxpool.Pool, class *rules.Class) (catalog.Load, error) {
	id := queryID(class)
	q.mu.Lock()
	load, ok := q.known[id]
	q.mu.Unlock()
	if ok {
		return load, nil
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return load, err
	}
	defer conn.Release()
	if load, err = catalog.DescribeLoad(ctx, conn.Conn(), class); err != nil {
		return load, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known == nil || len(q.known) >= queriesMax {
		q.known = map[string]catalog.Load{}
	}
	q.known[id] = load
	return load, nil
}

// forget has the class's load.sql described again.
func (q *queries) forget(class *rules.Class) {
	q.mu.Lock()
	delete(q.known, queryID(class))
	q.mu.Unlock()
}

// queryID tells apart what DescribeLoad looks at. The set of a reload has
// classes of its own that say the same.
func queryID(class *rules.Class) string {
	var b strings.Builder
	b.WriteString(class.Load.SQL + "\x00" + class.Key.String())
	for _, t := range class.Tags {
		b.WriteString("\x00" + t.String())
	}
	return b.String()
}
