package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe"
	"github.com/lethe-cache/lethe/internal/shop"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

func (p *program) demoCommand() *cobra.Command {
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Throwaway servers, a shop under load, and the race that a plain DEL loses",
		Long: `Starts a throwaway Postgres and Redis, loads a small shop, fills the cache as an
application would, and changes rows while readers go on filling. Then it shows a
slow reader's old value being refused, beside a cache that is emptied by a plain
DEL and keeps it. At the end every entry is compared with the database: exit
code 1 if any is stale. Nothing is left behind.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if duration < time.Second || duration > 10*time.Minute {
				return usagef("--duration %s: want 1s to 10m", duration)
			}
			graceful, _, release := stopSignals(cmd.Context(), syscall.SIGHUP)
			defer release()
			d := &demo{out: p.stdout, log: demoLogger(p), duration: duration}
			return d.run(graceful)
		},
	}
	cmd.Flags().DurationVar(&duration, "duration", 20*time.Second, "how long the shop is under load")
	return cmd
}

// demoLogger shows what goes wrong, and nothing else: the demonstration prints
// what is to be seen.
func demoLogger(p *program) *slog.Logger {
	level := slog.LevelError
	if p.settings.LogLevel == "debug" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
}

// demo is one demonstration.
type demo struct {
	out      io.Writer
	log      *slog.Logger
	duration time.Duration

	servers *demoServers
	line    *pipeline
	set     *rules.Set
	pool    *pgxpool.Pool
	redis   redis.UniversalClient
	cache   *demoCache
	view    *demoView
}

const demoReadyTimeout = 60 * time.Second

func (d *demo) run(ctx context.Context) (err error) {
	fmt.Fprintln(d.out, "Lethe demo: starting throwaway servers ...")
	if d.servers, err = startDemoServers(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.servers.close()) }()
	fmt.Fprintln(d.out, d.servers.String())

	dir, err := os.MkdirTemp("", "lethe-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := d.open(ctx, dir); err != nil {
		return err
	}
	defer d.pool.Close()
	defer d.redis.Close()

	// The pipeline outlives ctx: Ctrl-C ends the load, and the summary still
	// tells whether anything was stale.
	intake, stop := context.WithCancel(context.WithoutCancel(ctx))
	hurry, abandon := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- d.line.run(intake, hurry) }()
	defer func() {
		stop()
		timer := time.AfterFunc(drainTimeout, abandon)
		err = errors.Join(err, <-done)
		timer.Stop()
		abandon()
	}()
	if err := d.waitReady(ctx, done); err != nil {
		return err
	}
	return d.show(ctx)
}

// open makes the shop, its rules and the pipeline.
func (d *demo) open(ctx context.Context, dir string) (err error) {
	path := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(path, []byte(lethe.ExampleRules), 0o600); err != nil {
		return err
	}
	if d.set, err = rules.Load(path); err != nil {
		return err
	}
	if d.pool, err = pgxpool.New(ctx, d.servers.postgresURL); err != nil {
		return err
	}
	if _, err := d.pool.Exec(ctx, shop.Schema); err != nil {
		return fmt.Errorf("make the shop: %w", err)
	}
	options, err := redis.ParseURL(d.servers.redisURL)
	if err != nil {
		return err
	}
	d.redis = redis.NewClient(options)
	d.view = newDemoView(d.out)
	s := &settings{PostgresURL: d.servers.postgresURL, RedisURL: d.servers.redisURL, Slot: "lethe", Publication: "lethe"}
	if d.line, err = newPipeline(s, roles{reader: true, worker: true}, d.set, d.log, prometheus.NewRegistry()); err != nil {
		return err
	}
	d.line.observer = d.view.observer()
	d.line.redisRunID = d.servers.redisRunID
	return nil
}

func (d *demo) waitReady(ctx context.Context, done <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, demoReadyTimeout)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		state := d.line.readiness(ctx)
		if state.Ready {
			return nil
		}
		select {
		case <-ticker.C:
		case err := <-done:
			if err == nil {
				err = errors.New("it stopped")
			}
			return fmt.Errorf("start the pipeline: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("start the pipeline: not ready: %v", state.Reasons)
		}
	}
}

// show is what the demonstration is about.
func (d *demo) show(ctx context.Context) error {
	loader, err := warmer.OpenLoader(ctx, warmer.LoaderConfig{URL: d.servers.postgresURL})
	if err != nil {
		return err
	}
	defer loader.Close()
	if d.cache, err = newDemoCache(d.line.up.store, d.redis, loader, d.set); err != nil {
		return err
	}
	if err := d.fill(ctx); err != nil {
		return err
	}
	if err := d.load(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		if err := d.race(ctx); err != nil {
			return err
		}
	}
	return d.summary(context.WithoutCancel(ctx))
}
