package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/client"
)

// throughLethe reads through the client, with its L1. A writer does nothing to
// the cache. With tokens it asks, after COMMIT, where its write stands, and
// leaves the answer where readers of the two members find it, as an application
// puts it into a cookie, a message or a row; they read After it.
type throughLethe struct {
	c       *client.Client
	classes map[kind]*client.Class[page]
	// bare is a second process: no L1, so what is in Redis.
	bare        *client.Client
	bareClasses map[kind]*client.Class[page]
	tokens      []token // by member; nil without
}

// token is the last that is known of a member. Writes of one member commit one
// after the other, so the token of the last contains those before.
type token struct {
	mu      sync.Mutex
	version int64
	text    string
}

func openLethe(ctx context.Context, w *world, tokens bool) (cache, error) {
	l := &throughLethe{classes: map[kind]*client.Class[page]{}, bareClasses: map[kind]*client.Class[page]{}}
	if tokens {
		l.tokens = make([]token, w.network.members)
	}
	logger := slog.New(slog.DiscardHandler)
	var err error
	if l.c, err = client.Open(ctx, client.Options{Redis: w.redis, Namespace: "iq", Logger: logger}); err != nil {
		return nil, err
	}
	if l.bare, err = client.Open(ctx, client.Options{Redis: w.redis, Namespace: "iq", Logger: logger, L1Bytes: -1}); err != nil {
		return nil, errors.Join(err, l.c.Close())
	}
	for _, k := range kinds {
		l.classes[k] = client.Entries[page](l.c, string(k), client.TTL(pageTTL))
		l.bareClasses[k] = client.Entries[page](l.bare, string(k), client.TTL(pageTTL))
	}
	return l, nil
}

func (l *throughLethe) read(ctx context.Context, k kind, member int64, load loader) (page, error) {
	if l.tokens != nil {
		t := &l.tokens[member]
		t.mu.Lock()
		text := t.text
		t.mu.Unlock()
		if text != "" {
			ctx = l.c.After(ctx, text)
		}
	}
	return l.classes[k].Get(ctx, k.key(member), func(ctx context.Context, _ *client.Load) (page, error) { return load(ctx) })
}

func (l *throughLethe) before(context.Context, *pgxpool.Conn, *change) error { return nil }

func (l *throughLethe) after(ctx context.Context, conn *pgxpool.Conn, c *change) error {
	if l.tokens == nil {
		return nil
	}
	text, err := l.c.Wrote(ctx, conn)
	if err != nil {
		return err
	}
	for i, m := range c.members {
		t := &l.tokens[m]
		t.mu.Lock()
		if t.version < c.versions[i] {
			t.version, t.text = c.versions[i], text
		}
		t.mu.Unlock()
	}
	return nil
}

var errNotKept = errors.New("not in the cache")

func (l *throughLethe) kept(ctx context.Context, k kind, member int64) (out []page, err error) {
	nothing := func(context.Context, *client.Load) (page, error) { return page{}, errNotKept }
	for _, e := range []*client.Class[page]{l.classes[k], l.bareClasses[k]} {
		v, err := e.Get(ctx, k.key(member), nothing)
		switch {
		case err == nil:
			out = append(out, v)
		case !errors.Is(err, errNotKept):
			return nil, err
		}
	}
	return out, nil
}

func (l *throughLethe) close() error { return errors.Join(l.c.Close(), l.bare.Close()) }

// stats say what the client did, for -v.
func (l *throughLethe) String() string { return fmt.Sprintf("%+v", l.c.Stats()) }
