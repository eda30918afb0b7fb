// Command shop is a small HTTP service on a Postgres database, with a cache
// that Lethe keeps true. It is an example of how client is used: shop.go has
// the entries, http.go the requests, and this file what begins and ends.
//
//	DATABASE_URL=postgres://... REDIS_URL=redis://... LISTEN=127.0.0.1:8080 shop
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		slog.Error("the shop ends", "err", err)
		os.Exit(1)
	}
}

// shutdownTimeout bounds how long requests that are under way may take.
const shutdownTimeout = 10 * time.Second

// run serves until ctx ends. What was opened first is closed last: requests end
// before the cache, and the cache, which may still be filling, before the
// database.
func run(ctx context.Context, env func(string) string) error {
	pool, err := pgxpool.New(ctx, env("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	defer pool.Close()

	redisOptions, err := redis.ParseURL(env("REDIS_URL"))
	if err != nil {
		return fmt.Errorf("read REDIS_URL: %w", err)
	}
	rdb := redis.NewClient(redisOptions)
	defer rdb.Close()
	cache, err := client.Open(ctx, client.Options{Redis: rdb, Namespace: "shop", Database: pool, Logger: slog.Default()})
	if err != nil {
		return err
	}
	defer cache.Close()

	server := &http.Server{Addr: env("LISTEN"), Handler: newShop(pool, cache).routes(), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	slog.Info("the shop is open", "address", env("LISTEN"))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err = server.Shutdown(ctx)
	if ended := <-failed; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}
