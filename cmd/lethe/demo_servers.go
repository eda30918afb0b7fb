package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/lethe-cache/lethe/internal/servers"
)

// demoServers are the throwaway servers of a demonstration.
type demoServers struct {
	postgresURL, redisURL string
	postgres, redis       string // what they are, in words
	// redisRunID is set for a Redis that can not tell it.
	redisRunID func(context.Context, string) (string, error)
	stop       []func() error
}

const demoStartTimeout = 3 * time.Minute // a first start may download Postgres

// startDemoServers starts Postgres and Redis from what is on the machine, else
// from what can be had without asking anybody.
func startDemoServers(ctx context.Context) (s *demoServers, err error) {
	ctx, cancel := context.WithTimeout(ctx, demoStartTimeout)
	defer cancel()
	s = &demoServers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	pg, err := servers.StartPostgres(ctx, servers.PostgresConfig{})
	if err != nil {
		return s, fmt.Errorf("start Postgres: %w", err)
	}
	s.stop = append(s.stop, pg.Close)
	s.postgresURL, s.postgres = pg.URL("postgres"), pg.String()
	return s, s.startRedis(ctx)
}

func (s *demoServers) startRedis(ctx context.Context) error {
	server, err := servers.StartRedis(ctx, servers.RedisConfig{})
	if errors.Is(err, servers.ErrNotInstalled) && servers.Install(ctx, "redis-server") == nil {
		server, err = servers.StartRedis(ctx, servers.RedisConfig{})
	}
	if err == nil {
		s.stop = append(s.stop, server.Close)
		s.redisURL, s.redis = server.URL(), server.String()
		return nil
	}
	if !errors.Is(err, servers.ErrNotInstalled) {
		return fmt.Errorf("start Redis: %w", err)
	}
	fake := miniredis.NewMiniRedis()
	if err := fake.Start(); err != nil {
		return fmt.Errorf("start miniredis: %w", err)
	}
	s.stop = append(s.stop, func() error { fake.Close(); return nil })
	s.redisURL, s.redis = "redis://"+fake.Addr()+"/0", "miniredis in this process (no redis-server or valkey-server on PATH)"
	s.redisRunID = func(context.Context, string) (string, error) { return "miniredis", nil }
	return nil
}

// String says in one line which servers are used.
func (s *demoServers) String() string {
	return "using " + s.postgres + " and " + s.redis
}

func (s *demoServers) close() error {
	var errs []error
	for i := len(s.stop) - 1; i >= 0; i-- {
		errs = append(errs, s.stop[i]())
	}
	s.stop = nil
	return errors.Join(errs...)
}
