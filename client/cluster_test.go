package client

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// The same on a cluster: entries of all slots, a tag, a purge, the broadcast.
func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := harness.NewRedisCluster(t, 3)
	store, err := coherence.Dial(t.Context(), cluster.URL(), coherence.Options{Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	w := &world{t: t, ns: "shop", worker: store}
	_, err = store.SetSource(t.Context(), testSource)
	w.must(err)
	_, err = store.Seed(t.Context(), func(context.Context) (change.Position, error) { return at(50), nil })
	w.must(err)
	w.row.Store(1)
	w.beat(100, 90)

	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { _ = rdb.Close() })
	readers := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs(), ReadOnly: true})
	t.Cleanup(func() { _ = readers.Close() })
	if _, err := Open(t.Context(), Options{Redis: readers}); err == nil {
		t.Error("a client that reads from replicas is accepted")
	}
	open := func() *Client {
		c, err := Open(t.Context(), Options{Redis: rdb, Namespace: "shop", RedisTimeout: 5 * time.Second})
		w.must(err)
		t.Cleanup(func() { _ = c.Close() })
		w.live(c)
		return c
	}
	a, b := open(), open()
	ea, eb := w.items(a), w.items(b)
	const n = 20
	for i := range n {
		w.want("read", w.get(t.Context(), ea, fmt.Sprint("item:", i)), int64(1))
	}
	w.wantLoads(n)
	for i := range n {
		w.want("read of another", w.get(t.Context(), eb, fmt.Sprint("item:", i)), int64(1))
	}
	w.wantLoads(0)
	var keys []int
	for i := range n {
		keys = append(keys, i)
	}
	c := open()
	shelf := newShelf(30)
	if got := w.many(t.Context(), w.shelved(c, shelf), append(keys, 27, 28, 29)...); len(strings.Fields(got)) != n+3 {
		t.Errorf("a batch on the cluster: %s", got)
	}
	shelf.wantCalls(t, "27 28 29")
	w.want("L2 hits of the batch", c.Stats().Classes["item"].L2Hits, uint64(n))
	w.want("fills of the batch", c.Stats().Classes["item"].Fills, uint64(3))
	w.want("refused", fmt.Sprint(a.Stats().Classes["item"].Refused), "map[]")
	w.write("item:3", 110)
	w.live(a)
	w.live(b)
	w.want("read after a write", w.get(t.Context(), ea, "item:3"), int64(2))
	w.row.Add(1)
	w.beat(200, 120)
	w.heard(a, 120)
	w.heard(b, 120)
	w.must(a.Barrier(t.Context(), tokenAt(150)))
	w.must(a.InvalidateTags(t.Context(), Any("all")))
	w.live(a)
	w.live(b)
	for i := range n {
		w.want("read after a purge", w.get(t.Context(), eb, fmt.Sprint("item:", i)), int64(3))
	}
}
