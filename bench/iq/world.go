package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/servers"
)

// world is the servers and what every variant uses of them.
type world struct {
	network *network
	redis   *redis.Client
	names   string // of the servers, for people
	close   func() error
}

// openWorld starts a Postgres, a Redis and Lethe on them. Lethe runs beside all
// variants, also those that do not need it: the machine's load is the same.
func openWorld(ctx context.Context, binary string, members, sessions int) (_ *world, err error) {
	var closers []func() error
	w := &world{close: func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	pg, err := servers.StartPostgres(ctx, servers.PostgresConfig{Settings: map[string]string{
		"max_connections": fmt.Sprint(sessions + 50),
		"fsync":           "on", // a commit takes what it takes where it is worth keeping
	}})
	if err != nil {
		return nil, err
	}
	closers = append(closers, pg.Close)
	server, err := servers.StartRedis(ctx, servers.RedisConfig{})
	if err != nil {
		return nil, err
	}
	closers = append(closers, server.Close)
	w.names = pg.String() + ", " + server.String()

	config, err := pgxpool.ParseConfig(pg.URL("postgres"))
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(sessions) // each session has a connection, as in the published runs
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	closers = append(closers, func() error { pool.Close(); return nil })
	if w.network, err = newNetwork(ctx, pool, members); err != nil {
		return nil, err
	}
	w.redis = redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: sessions, Protocol: 2})
	closers = append(closers, w.redis.Close)
	lethe, err := servers.StartLethe(ctx, servers.LetheConfig{
		Binary: binary, Rules: rulesYAML, PostgresURL: pg.URL("postgres"), RedisURL: server.URL(),
	})
	if err != nil {
		return nil, err
	}
	closers = append(closers, lethe.Close)
	return w, nil
}
