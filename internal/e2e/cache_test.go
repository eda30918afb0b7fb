package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/naive"
)

// cache is an application's view of the entries that Lethe keeps true, by the
// steps of the protocol, so that a test can stop between any two.
type cache struct {
	t     *testing.T
	store *coherence.Store
	redis *redis.Client
	class string
}

const namespace = "e2e"

func openCache(t *testing.T, redisURL, class string) *cache {
	t.Helper()
	store, err := coherence.Dial(t.Context(), redisURL, coherence.Options{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	c := &cache{t: t, store: store, redis: redis.NewClient(options), class: class}
	t.Cleanup(func() {
		if err := errors.Join(c.redis.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// begin takes a ticket with what is known now.
func (c *cache) begin(name string) coherence.Ticket {
	c.t.Helper()
	state, err := c.store.Control(c.t.Context(), c.class)
	if err != nil {
		c.t.Fatal(err)
	}
	known := coherence.Known{Source: state.Source, V: state.V}
	for _, r := range []coherence.ClassRecord{state.Classes[c.class], state.Classes["*"]} {
		if r.Generation > known.Generation {
			known.Generation, known.Bound = r.Generation, r.Bound
		}
	}
	begun, err := c.store.Begin(c.t.Context(), coherence.BeginRequest{Name: name, Known: known})
	if err != nil {
		c.t.Fatal(err)
	}
	return begun.Ticket
}

// fill stores what the primary showed.
func (c *cache) fill(ticket coherence.Ticket, value string) coherence.Reason {
	c.t.Helper()
	return c.store1(coherence.FillRequest{Ticket: ticket, Payload: []byte(value), TTL: time.Hour})
}

// fillFromStandby stores what a standby showed that had replayed up to stamp.
func (c *cache) fillFromStandby(ticket coherence.Ticket, value string, stamp change.Position) coherence.Reason {
	c.t.Helper()
	return c.store1(coherence.FillRequest{Ticket: ticket, Payload: []byte(value), TTL: time.Hour, Standby: true, Stamp: stamp})
}

func (c *cache) store1(r coherence.FillRequest) coherence.Reason {
	c.t.Helper()
	reason, err := c.store.Fill(c.t.Context(), r)
	if err != nil {
		c.t.Fatal(err)
	}
	return reason
}

// get returns what a reader would be served: a value of the generation that is
// known, or nothing.
func (c *cache) get(name string) (value string, hit bool) {
	c.t.Helper()
	raw, err := c.redis.Get(c.t.Context(), name).Bytes()
	if errors.Is(err, redis.Nil) {
		return "", false
	}
	if err != nil {
		c.t.Fatal(err)
	}
	header, payload, err := coherence.Parse(raw)
	if err != nil || header.State != coherence.StateValue {
		return "", false
	}
	state, err := c.store.Control(c.t.Context(), c.class)
	if err != nil {
		c.t.Fatal(err)
	}
	if header.Generation != max(state.Classes[c.class].Generation, state.Classes["*"].Generation) {
		return "", false
	}
	return string(payload), true
}

// warm fills an entry in the ordinary way and checks that it is served.
func (c *cache) warm(name, value string) {
	c.t.Helper()
	if reason := c.fill(c.begin(name), value); reason != coherence.Stored {
		c.t.Fatalf("fill %s: refused: %s", name, reason)
	}
	if got, hit := c.get(name); !hit || got != value {
		c.t.Fatalf("get %s = %q, %v after the fill, want %q", name, got, hit, value)
	}
}

// gone waits until the entry is no longer served.
func (c *cache) gone(name string) {
	c.t.Helper()
	harness.Eventually(c.t, 20*time.Second, func() error {
		if v, hit := c.get(name); hit {
			return fmt.Errorf("%s is still served: %q", name, v)
		}
		return nil
	})
}

// naiveCache is the same entry kept by a consumer that sends a plain DEL.
type naiveCache struct {
	t       *testing.T
	redis   *redis.Client
	deleted chan string
}

const naivePublication = "naive"

// startNaive runs the naive consumer on a database whose table items it
// watches, until the test ends or Postgres does.
func startNaive(t *testing.T, database, redisURL string) *naiveCache {
	t.Helper()
	execute(t, database, "CREATE PUBLICATION "+naivePublication+" FOR TABLE items")
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	n := &naiveCache{t: t, redis: redis.NewClient(options), deleted: make(chan string, 100)}
	consumer := &naive.Consumer{
		PostgresURL: database, Slot: "naive", Publication: naivePublication, Redis: n.redis,
		Key:     func(_ string, row map[string]string) string { return naiveKey(row["id"]) },
		Deleted: func(key string) { n.deleted <- key },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = consumer.Run(ctx, func() { close(ready) }) // a killed Postgres ends it, which some tests want
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = n.redis.Close()
	})
	select {
	case <-ready:
	case <-done:
		t.Fatal("the naive consumer ended before it was ready")
	case <-time.After(20 * time.Second):
		t.Fatal("the naive consumer is not ready")
	}
	return n
}

func naiveKey(id string) string { return "naive:item:" + id }

func (n *naiveCache) set(id int, value string) {
	n.t.Helper()
	if err := n.redis.Set(n.t.Context(), naiveKey(strconv.Itoa(id)), value, 0).Err(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *naiveCache) get(id int) string {
	n.t.Helper()
	v, err := n.redis.Get(n.t.Context(), naiveKey(strconv.Itoa(id))).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		n.t.Fatal(err)
	}
	return v
}

// waitDeleted waits until the consumer has sent a DEL for the key.
func (n *naiveCache) waitDeleted(id int) {
	n.t.Helper()
	want, deadline := naiveKey(strconv.Itoa(id)), time.After(20*time.Second)
	for {
		select {
		case key := <-n.deleted:
			if key == want {
				return
			}
		case <-deadline:
			n.t.Fatalf("the naive consumer has not deleted %s", want)
		}
	}
}

// connect opens a connection that closes with the test.
func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func queryText(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var v string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}
