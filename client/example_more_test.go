package client_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/client"
)

// After a Barrier no process serves what was there before the write, with or
// without a token.
func ExampleClient_Barrier() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	load := client.LoadWith(func(_ context.Context, key string, _ *client.Load) (Product, error) {
		p, _ := db.read(key)
		return p, nil
	})
	other := client.Entries[Product](ct.Open(client.Options{}), "product", load)
	p, _ := other.Get(ctx, "product:1")
	fmt.Println(p.Name)

	db.name("product:1", "Bright lamp")
	token := ct.Commit("product:1") // in a program: of Client.Wrote
	ct.Settle()
	err := ct.Client.Barrier(ctx, token)
	var late *client.BarrierError
	if errors.As(err, &late) {
		fmt.Println("not heard of by", late.Clients)
	}
	p, _ = other.Get(ctx, "product:1")
	fmt.Println(p.Name, err)
	// Output:
	// Lamp
	// Bright lamp <nil>
}

// A key that is put together wrongly is an error, and not an entry that nobody
// invalidates.
func ExampleOptions_keyPattern() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	c := ct.Open(client.Options{KeyPattern: regexp.MustCompile(`^[a-z]+(:[a-z0-9]+)+$`)})
	names := client.Entries[string](c, "product", client.LoadWith(
		func(context.Context, string, *client.Load) (string, error) { return "Lamp", nil }))
	fmt.Println(names.Get(ctx, "product:1"))
	_, err := names.Get(ctx, "product: 1")
	fmt.Println(errors.Is(err, client.ErrKey))
	// Output:
	// Lamp <nil>
	// true
}

// In development: which tables the loads of each class read. "lethe check
// --observed" names those that no rule covers.
func ExampleClient_ObservedTables() {
	ctx := context.Background()
	db, err := pgxpool.New(ctx, "postgres://localhost/shop")
	if err != nil {
		panic(err)
	}
	defer db.Close()
	c, err := client.Open(ctx, client.Options{
		Redis:    redis.NewClient(&redis.Options{Addr: "localhost:6379"}),
		Database: db, ObserveTables: true,
	})
	if err != nil {
		panic(err)
	}
	defer c.Close()
	for class, tables := range c.ObservedTables() {
		fmt.Println(class, tables)
	}
}

// What is large, or seldom read twice by one process, need not take L1's place.
func ExampleL1Off() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	reports := client.Entries[string](ct.Client, "report", client.L1Admission(client.L1Off()))
	load := func(context.Context, *client.Load) (string, error) { return "a long text", nil }
	for range 3 {
		_, _ = reports.Get(ctx, "report:1", load)
		ct.Wait()
	}
	s := ct.Client.Stats().Classes["report"]
	fmt.Println("of L1:", s.L1Hits, "of Redis:", s.L2Hits)
	// Output: of L1: 0 of Redis: 2
}

// Values below 4 KB whose key is read twice a minute or more often.
func ExampleL1Hot() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	reviews := client.Entries[string](ct.Client, "review", client.L1Admission(client.L1Hot(4096, 2)))
	load := func(context.Context, *client.Load) (string, error) { return "good", nil }
	for range 4 {
		_, _ = reviews.Get(ctx, "review:1", load)
		ct.Wait()
	}
	s := ct.Client.Stats().Classes["review"]
	fmt.Println("loads:", s.Loads, "hits:", s.L1Hits+s.L2Hits)
	// Output: loads: 1 hits: 3
}

// Raw values, for programs in other languages that read them with a bare GET.
func ExamplePlain() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	ratings := client.Entries[float64](ct.Client, "rating", client.Plain(), client.TTL(10*time.Minute))
	v, err := ratings.Get(ctx, "rating:42", func(context.Context, *client.Load) (float64, error) { return 4.5, nil })
	fmt.Println(v, err) // GET shop:rating:42 answers 4.5
	// Output: 4.5 <nil>
}
