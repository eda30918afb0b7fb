package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/edge"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/stream"
)

// openEdge makes the sink for edge caches. Without endpoints in the rules it
// does nothing until a reload brings some.
func (p *pipeline) openEdge() (*edge.Sink, error) {
	set := p.rules.Load().set
	owner, alone := p.namespace()+"|"+p.settings.Slot, true
	if !p.settings.direct() {
		owner, alone = p.namespace()+"|kafka|"+p.settings.kafka(p.namespace(), p.log).Group, false
	}
	sink, err := edge.New(edge.Config{
		DB: p.up.database.pool, Owner: owner, Namespace: set.Namespace, Alone: alone,
		DeadLetter: p.edgeLetter, Logger: p.log, Registerer: p.registry,
	}, set.EdgeCaches)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: err, hint: "set the variables that the rules name under edge"}
	}
	if !sink.Active() {
		return sink, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	var may bool
	err = p.up.database.pool.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass('lethe.edge_outbox'), 'INSERT, UPDATE, DELETE')
		AND has_table_privilege(to_regclass('lethe.edge_endpoints'), 'INSERT, UPDATE, DELETE'), false)`).Scan(&may)
	if err != nil {
		return nil, err
	}
	if !may {
		return nil, &exitError{code: exitFailed, err: errors.New("the rules name edge caches, and this role may not write to lethe.edge_outbox, which keeps what they are to be told"),
			hint: "let an administrator run: lethe migrate"}
	}
	return sink, nil
}

// beyond is who keeps what is forgotten for edge caches, nil while there are none.
func (p *pipeline) beyond() invalidator.Beyond {
	if len(p.rules.Load().set.EdgeCaches) == 0 {
		return nil
	}
	return func(ctx context.Context, f invalidator.Forgotten) error {
		return p.up.edge.Keep(ctx, edge.Forgotten(f))
	}
}

// tellEdge runs the sink, with the endpoints of the rules in force.
func (p *pipeline) tellEdge(ctx context.Context) error {
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		in := p.rules.Load()
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			next := p.rules.Load()
			if next == in {
				continue
			}
			if err := p.up.edge.Set(next.set.EdgeCaches); err != nil {
				p.log.Error("edge caches stay as they were", "error", err) // checked with the reload
			}
			in = next
		}
	})
	return p.up.edge.Run(ctx)
}

// edgeLetter keeps a name that an edge cache does not take.
func (p *pipeline) edgeLetter(ctx context.Context, endpoint, name string, err error) {
	letter := stream.DeadLetter{Reason: "edge", Err: err.Error(), Table: endpoint, Payload: []byte(name)}
	if err := p.up.deadLetters.Put(ctx, letter); err != nil {
		p.log.ErrorContext(ctx, "dead letter of an edge cache could not be stored", "endpoint", endpoint, "name", name, "error", err)
	}
}
