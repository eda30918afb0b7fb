package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/client"
)

// Product is a row with its category.
type Product struct {
	ID       int
	Category string
	Name     string
}

func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://localhost/shop")
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	defer rdb.Close()

	c, err := client.Open(ctx, client.Options{Redis: rdb, Namespace: "shop", Database: pool})
	if err != nil {
		panic(err)
	}
	defer c.Close()

	products := client.Entries[Product](c, "product", client.TTL(time.Hour), client.Jitter(0.1))
	p, err := products.Get(ctx, "product:42", func(ctx context.Context, l *client.Load) (Product, error) {
		var p Product
		err := l.QueryRow(ctx, "select id, category, name from products where id = $1", 42).Scan(&p.ID, &p.Category, &p.Name)
		l.Tag("category:" + p.Category)
		return p, err
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(p.Name)
}

// A class with a loader of its own, which also remembers what does not exist.
func ExampleLoadWith() {
	var c *client.Client // of Open
	var pool *pgxpool.Pool
	products := client.Entries[Product](c, "product",
		client.NegativeTTL(time.Minute),
		client.LoadWith(func(ctx context.Context, key string, l *client.Load) (Product, error) {
			var p Product
			err := pool.QueryRow(ctx, "select id, category, name from products where 'product:' || id = $1", key).Scan(&p.ID, &p.Category, &p.Name)
			if errors.Is(err, pgx.ErrNoRows) {
				return p, client.ErrNotFound
			}
			l.Tag("category:" + p.Category)
			return p, err
		}))
	http.HandleFunc("/product/{id}", func(w http.ResponseWriter, r *http.Request) {
		p, err := products.Get(r.Context(), "product:"+r.PathValue("id"))
		switch {
		case errors.Is(err, client.ErrNotFound):
			http.NotFound(w, r)
		case err != nil:
			http.Error(w, "try again", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, p.Name)
		}
	})
}

// Reads that must contain a write, also in another service: the token travels
// in a header or a cookie.
func ExampleClient_Wrote() {
	var c *client.Client // of Open
	var pool *pgxpool.Pool
	ctx := context.Background()
	if _, err := pool.Exec(ctx, "update products set name = 'Lamp' where id = 42"); err != nil {
		panic(err)
	}
	token, err := c.Wrote(ctx, pool)
	if err != nil {
		panic(err)
	}
	products := client.Entries[Product](c, "product")
	p, err := products.Get(c.After(ctx, token), "product:42")
	fmt.Println(p, err)
}
