package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// Tags are the tags of InvalidateTags; see All and Any.
type Tags struct {
	names []string
	all   bool
}

// All means the entries that have every one of the tags.
func All(tags ...string) Tags { return Tags{names: tags, all: true} }

// Any means the entries that have at least one of the tags.
func Any(tags ...string) Tags { return Tags{names: tags} }

// Invalidate forgets entries by their keys, without the namespace, whatever
// they are made from. It is for what is not in the database: changes of tables
// are seen without it.
//
// With Options.Database it commits a message there and returns; the entries are
// forgotten by the workers, like those of any other commit, and a value that
// already contains everything up to now may stay. Without, or if the database
// is a standby, it forgets in Redis before it returns and tells every L1. After
// an error the caller repeats it.
func (c *Client) Invalidate(ctx context.Context, keys ...string) error {
	if len(keys) == 0 {
		return nil
	}
	for _, k := range keys {
		if err := c.checkName(k); err != nil {
			return fmt.Errorf("invalidate %q: %w", k, err)
		}
	}
	sent, err := c.emit(ctx, map[string]any{"keys": keys})
	if err == nil && !sent {
		err = c.forgetKeys(ctx, keys)
	}
	if err != nil {
		return fmt.Errorf("invalidate %q: %w", keys, err)
	}
	return nil
}

// InvalidateTags forgets the entries that have All or Any of some tags, without
// the namespace. How, and what an error means, is as with Invalidate.
func (c *Client) InvalidateTags(ctx context.Context, tags Tags) error {
	if len(tags.names) == 0 {
		return nil
	}
	for _, t := range tags.names {
		if err := c.checkName(t); err != nil {
			return fmt.Errorf("invalidate tag %q: %w", t, err)
		}
	}
	var text any = tags.names
	if tags.all {
		text = map[string]any{"all": tags.names}
	}
	sent, err := c.emit(ctx, map[string]any{"tags": text})
	if err == nil && !sent {
		err = c.purge(ctx, tags)
	}
	if err != nil {
		return fmt.Errorf("invalidate tags %q: %w", tags.names, err)
	}
	return nil
}

// emit commits a logical message; false if there is no primary to commit it on.
// It does not wait for synchronous standbys: the message has the place in the
// log that counts once it is written.
func (c *Client) emit(ctx context.Context, message map[string]any) (bool, error) {
	pool := c.opts.Database
	if pool == nil {
		return false, nil
	}
	text, err := json.Marshal(message)
	if err != nil {
		return false, err
	}
	sent := true
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var standby bool
		if err := tx.QueryRow(ctx, `SELECT pg_catalog.pg_is_in_recovery()`).Scan(&standby); err != nil || standby {
			sent = false
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = local`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `SELECT pg_catalog.pg_logical_emit_message(true, 'lethe', $1::text)`, string(text))
		return err
	})
	return sent, err
}

var errNoSource = errors.New("no worker has run on this namespace")

// place is a position for an invalidation by hand: what was committed is
// not behind it, and every value read from the primary so far does not cover it.
func (c *Client) place(ctx context.Context, store *coherence.Store) (x change.Position, err error) {
	ctl, err := store.Control(ctx)
	if err != nil {
		return x, err
	}
	if ctl.Source.Era == 0 {
		return x, errNoSource
	}
	if ctl.V.Era != ctl.Source.Era {
		return change.Position{Era: ctl.Source.Era}, nil
	}
	return ctl.V, nil
}

// everything is beyond every stamp: a broadcast with it drops all that it names.
func everything(x change.Position) change.Position {
	return change.Position{Era: x.Era, LSN: 1<<64 - 1}
}

// forgetKeys does what a worker does for a commit: Redis first, then the
// broadcast.
func (c *Client) forgetKeys(ctx context.Context, keys []string) error {
	store := c.store.Load()
	if store == nil {
		return errNoRedis
	}
	x, err := c.place(ctx, store)
	if err != nil {
		return err
	}
	names := c.allVersions(keys)
	batch := make([]coherence.Invalidation, len(names))
	for i, n := range names {
		batch[i] = coherence.Invalidation{Name: n, X: x, Action: coherence.ActionDelete}
	}
	if err := c.forget(ctx, store, batch); err != nil {
		return err
	}
	_, _, err = store.Broadcast(ctx, coherence.Message{Kind: coherence.KindKeys, X: everything(x), Names: names})
	return err
}

// allVersions are the names of keys in every version that this Client uses.
func (c *Client) allVersions(keys []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := make([]string, 0, len(keys)*len(c.versions))
	for _, k := range keys {
		for _, v := range c.versions {
			names = append(names, c.layout.Versioned(c.full(k), v))
		}
	}
	return names
}

// forget unlinks entries with their tickets, exact ones and plain ones.
func (c *Client) forget(ctx context.Context, store *coherence.Store, batch []coherence.Invalidation) error {
	for i := range batch {
		batch[i].Plain = true
	}
	_, err := store.Invalidate(ctx, batch)
	return err
}

// purge is a purge without a worker: open, sweep, close. If it breaks off, the
// purge is over when the workers' watermark passes it, unswept: hence the error.
func (c *Client) purge(ctx context.Context, tags Tags) error {
	store := c.store.Load()
	if store == nil {
		return errNoRedis
	}
	x, err := c.place(ctx, store)
	if err != nil {
		return err
	}
	p := coherence.Purge{X: x, All: tags.all}
	for _, t := range tags.names {
		p.Tags = append(p.Tags, c.full(t))
	}
	if err := store.OpenPurge(ctx, p, change.Position{}); err != nil {
		return err
	}
	lists := p.Tags
	if p.All {
		lists = lists[:1]
	}
	for _, tag := range lists {
		if err := c.sweep(ctx, store, &p, tag); err != nil {
			return err
		}
	}
	return store.ClosePurge(ctx, p, change.Position{})
}

func (c *Client) sweep(ctx context.Context, store *coherence.Store, p *coherence.Purge, tag string) error {
	for cursor := uint64(0); ; {
		members, next, err := store.Members(ctx, tag, cursor, 0)
		if err != nil {
			return err
		}
		if p.All {
			for _, other := range p.Tags[1:] {
				in, err := store.Registered(ctx, other, members)
				if err != nil {
					return err
				}
				kept := members[:0]
				for i, m := range members {
					if in[i] {
						kept = append(kept, m)
					}
				}
				members = kept
			}
		}
		if len(members) > 0 {
			batch := make([]coherence.Invalidation, len(members))
			for i, m := range members {
				batch[i] = coherence.Invalidation{Name: m, X: p.X, Action: coherence.ActionDelete}
			}
			if err := c.forget(ctx, store, batch); err != nil {
				return err
			}
			if _, _, err := store.Broadcast(ctx, coherence.Message{Kind: coherence.KindKeys, X: everything(p.X), Names: members}); err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}
