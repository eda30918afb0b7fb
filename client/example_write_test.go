package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/client"
)

// By hand is for what the database does not know; changes of tables are seen
// without it.
func ExampleClient_Invalidate() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	rate := 1.07
	rates := client.Entries[float64](ct.Client, "rate", client.LoadWith(func(_ context.Context, _ string, l *client.Load) (float64, error) {
		l.Tag("rates", "bank:1")
		return rate, nil // of another service
	}))
	read := func() {
		v, err := rates.Get(ctx, "rate:EUR")
		ct.Wait()
		fmt.Println(v, err)
	}
	read()
	rate = 1.08
	fmt.Println(ct.Client.Invalidate(ctx, "rate:EUR"))
	ct.Settle() // or a moment later
	read()
	rate = 1.09
	fmt.Println(ct.Client.InvalidateTags(ctx, client.All("rates", "bank:1")))
	ct.Settle()
	read()
	rate = 1.10
	fmt.Println(ct.Client.InvalidateTags(ctx, client.Any("bank:1", "bank:2")))
	ct.Settle()
	read()
	// Output:
	// 1.07 <nil>
	// <nil>
	// 1.08 <nil>
	// <nil>
	// 1.09 <nil>
	// <nil>
	// 1.1 <nil>
}

// Who brings the token of a write reads the write, though the workers may not
// have seen it. In a program the token is from Wrote, after COMMIT.
func ExampleClient_After() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadWith(func(_ context.Context, key string, _ *client.Load) (Product, error) {
		p, _ := db.read(key)
		return p, nil
	}))
	_, _ = products.Get(ctx, "product:1")
	ct.Wait()

	db.name("product:1", "Bright lamp")
	token := ct.Commit("product:1")

	p, _ := products.Get(ctx, "product:1")
	fmt.Println("somebody else:", p.Name)
	p, _ = products.Get(ct.Client.After(ctx, token), "product:1")
	fmt.Println("who wrote:", p.Name)
	// Output:
	// somebody else: Lamp
	// who wrote: Bright lamp
}

// Values that came along with something else are put, not thrown away.
func ExampleClass_Put() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product")
	ct.Settle() // a class is known a moment after Entries

	at := ct.Client.Moment() // before the listing is read
	for _, key := range []string{"product:1", "product:2"} {
		p, _ := db.read(key)
		stored, err := products.Put(ctx, at, key, p, client.PutTags("category:"+p.Category))
		fmt.Println(stored, err)
	}
	p, err := products.Get(ctx, "product:2") // there is no loader
	fmt.Println(p.Name, err)

	// What was read before a commit is not stored after it.
	at = ct.Client.Moment()
	old, _ := db.read("product:1")
	db.name("product:1", "Bright lamp")
	ct.Invalidate("product:1")
	stored, err := products.Put(ctx, at, "product:1", old)
	fmt.Println(stored, err)
	// Output:
	// true <nil>
	// true <nil>
	// Lantern <nil>
	// false <nil>
}

// Update writes and leaves the new value in the cache.
func ExampleClass_Update() {
	var c *client.Client // of Open, with Options.Database
	products := client.Entries[Product](c, "product", client.LoadWith(func(ctx context.Context, key string, l *client.Load) (p Product, err error) {
		err = l.QueryRow(ctx, "select id, category, name from products where 'product:' || id = $1", key).Scan(&p.ID, &p.Category, &p.Name)
		return p, err
	}))
	http.HandleFunc("PUT /product/{id}", func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		_, err := products.Update(r.Context(), "product:"+id, func(ctx context.Context, tx pgx.Tx) (Product, error) {
			_, err := tx.Exec(ctx, "update products set name = $2 where id = $1", id, r.FormValue("name"))
			return Product{Name: r.FormValue("name")}, err
		})
		if errors.Is(err, client.ErrUnknownOutcome) {
			slog.Warn("look whether it was written", "err", err)
		}
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
		}
	})
}
