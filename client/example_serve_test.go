package client_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/client"
)

// While the client does not hear the broadcast, L1 is passed by; a class may
// choose otherwise.
func ExampleStaleWhileNotLive() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	name := "Lamp"
	load := func(context.Context, string, *client.Load) (string, error) { return name, nil }
	usual := client.Entries[string](ct.Client, "usual", client.LoadWith(load))
	stale := client.Entries[string](ct.Client, "stale", client.LoadWith(load), client.StaleWhileNotLive(time.Hour))
	strict := client.Entries[string](ct.Client, "strict", client.LoadWith(load), client.FailWhileNotLive())
	ct.Settle()
	for ct.Stats().L1Entries < 2 {
		_, _ = usual.Get(ctx, "usual:1")
		_, _ = stale.Get(ctx, "stale:1")
	}

	ct.Blind()
	name = "Bright lamp"
	ct.Raise("usual", "stale", "strict")
	v, err := usual.Get(ctx, "usual:1")
	fmt.Println("usual:", v, err)
	v, err = stale.Get(ctx, "stale:1")
	fmt.Println("stale:", v, err)
	_, err = strict.Get(ctx, "strict:1")
	fmt.Println("strict:", errors.Is(err, client.ErrNotLive))
	// Output:
	// usual: Bright lamp <nil>
	// stale: Lamp <nil>
	// strict: true
}

// A default stands in when the database fails, too.
func ExampleDefault() {
	ct, end := newCache()
	defer end()
	hints := client.Entries[[]string](ct.Client, "hints",
		client.Default([]string{"bestsellers"}),
		client.LoadWith(func(context.Context, string, *client.Load) ([]string, error) {
			return nil, errors.New("the database is down")
		}))
	v, err := hints.Get(context.Background(), "hints:42")
	fmt.Println(v, err)
	// Output: [bestsellers] <nil>
}

// Limits on what a slow database may cost: how long a reader waits who can be
// given something else, and how long a load may take at all.
func ExampleSoftTimeout() {
	ct, end := newCache()
	defer end()
	ready := make(chan struct{})
	hints := client.Entries[string](ct.Client, "hints",
		client.Default("none yet"),
		client.SoftTimeout(10*time.Millisecond),
		client.HardTimeout(time.Minute),
		client.LoadWith(func(ctx context.Context, _ string, _ *client.Load) (string, error) {
			select {
			case <-ready:
				return "bestsellers", nil
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}))
	fmt.Println(hints.Get(context.Background(), "hints:42"))
	close(ready) // the load has gone on
	ct.Wait()
	fmt.Println(hints.Get(context.Background(), "hints:42"))
	// Output:
	// none yet <nil>
	// bestsellers <nil>
}

// Settings of age. StaleFor is about values that were invalidated, the other
// two about such as have only grown old.
func ExampleStaleFor() {
	ct, end := newCache()
	defer end()
	pages := client.Entries[string](ct.Client, "page",
		client.TTL(10*time.Minute),
		client.StaleWhileRevalidate(time.Hour), // old pages are shown once more while they are loaded again
		client.EarlyRefresh(1),                 // and usually are before that
		client.StaleFor(30*time.Second),        // a changed page may be the old one that long, rather than wait
		client.SoftTimeout(50*time.Millisecond),
		client.LoadWith(func(context.Context, string, *client.Load) (string, error) { return "<h1>Lamp</h1>", nil }))
	fmt.Println(pages.Get(context.Background(), "page:home"))
	// Output: <h1>Lamp</h1> <nil>
}

// When too many loads wait, customers go before crawlers.
func ExamplePriority() {
	ct, end := newCache()
	defer end()
	products := client.Entries[string](ct.Client, "product",
		client.MaxLoads(1),
		client.LoadWith(func(_ context.Context, key string, _ *client.Load) (string, error) { return key, nil }))
	ctx := client.Priority(context.Background(), 10)
	fmt.Println(products.Get(ctx, "product:1"))
	// Output: product:1 <nil>
}

// A part of L1 that no other class takes.
func ExampleL1Share() {
	ct, end := newCache()
	defer end()
	sessions := client.Entries[string](ct.Client, "session", client.L1Share(0.25))
	v, err := sessions.Get(context.Background(), "session:1", func(context.Context, *client.Load) (string, error) { return "Ada", nil })
	fmt.Println(v, err)
	// Output: Ada <nil>
}

// counting counts reads by where their answers came from.
type counting struct {
	client.NopObserver
	mu     sync.Mutex
	layers map[string]int
}

func (o *counting) ObserveRead(e client.ReadEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.layers[e.Layer.Result().String()]++
}

func ExampleObserver() {
	ct, end := newCache()
	defer end()
	o := &counting{layers: map[string]int{}}
	c := ct.Open(client.Options{Observer: o})
	products := client.Entries[string](c, "product", client.LoadWith(func(context.Context, string, *client.Load) (string, error) { return "Lamp", nil }))
	for range 4 {
		_, _ = products.Get(context.Background(), "product:1")
		ct.Wait()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Println(o.layers)
	// Output: map[hit:3 miss:1]
}

func ExampleClient_Collector() {
	ct, end := newCache()
	defer end()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(ct.Client.Collector())
	families, err := metrics.Gather()
	fmt.Println(len(families) > 0, err)
	// Output: true <nil>
}

func ExampleClient_Stats() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	products := client.Entries[string](ct.Client, "product")
	for range 3 {
		_, _ = products.Get(ctx, "product:1", func(context.Context, *client.Load) (string, error) { return "Lamp", nil })
		ct.Wait()
	}
	s := ct.Client.Stats()
	p := s.Classes["product"]
	fmt.Println(s.State, p.Loads, p.L1Hits+p.L2Hits)
	// Output: live 1 2
}

// However badly things go between the database and the cache, nothing older
// than this is served as current.
func ExampleMaxStale() {
	ct, end := newCache()
	defer end()
	prices := client.Entries[string](ct.Client, "price", client.MaxStale(5*time.Second))
	v, err := prices.Get(context.Background(), "price:1", func(context.Context, *client.Load) (string, error) { return "9.99", nil })
	fmt.Println(v, err)
	// Output: 9.99 <nil>
}
