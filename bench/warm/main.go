// Command warm measures a cold start: an empty Redis, a table of rows, and a
// process that is ready once an entry of each row is cached. It prints the time
// and draws what the database and the warm-up did meanwhile. /readyz is asked
// all along: it has to answer 503, with how far the warm-up is, until the end.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{}
	flag.IntVar(&o.rows, "rows", 1_000_000, "entries")
	flag.IntVar(&o.concurrency, "concurrency", 4, "loads at a time")
	flag.StringVar(&o.picture, "o", "", "draw into this file")
	flag.DurationVar(&o.limit, "limit", 20*time.Minute, "give up after this long")
	flag.Parse()
	if err := measure(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

type options struct {
	rows, concurrency int
	picture           string
	limit             time.Duration
}

const warmRules = `version: 1
namespace: cold
entries:
  product:
    key: product:{id}
    ttl: 24h
    load: {sql: "SELECT id, name, price, category_id, description FROM products WHERE id = ANY(@id)"}
rules:
  - {name: product, table: public.products, keys: ["product:{id}"]}
warm:
  - {entry: product, sql: SELECT id FROM products, on_start: true, deadline: 2h}
`

// sample is what was seen at one moment.
type sample struct {
	at         time.Duration
	rows       int     // warmed so far
	statements float64 // of the database, so far
	active     int     // backends of Lethe that run a statement
	reason     string
}

func measure(ctx context.Context, o options, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "lethe-warm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, err := servers.BuildLethe(ctx, dir)
	if err != nil {
		return err
	}
	pg, err := servers.StartPostgres(ctx, servers.PostgresConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Close()) }()
	rdb, err := servers.StartRedis(ctx, servers.RedisConfig{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rdb.Close()) }()
	url := pg.URL("postgres")
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for _, sql := range []string{
		`CREATE TABLE products (id bigint PRIMARY KEY, name text, price numeric(10,2), category_id int, description text)`,
		fmt.Sprintf(`INSERT INTO products SELECT i, 'product ' || i, (i %% 10000) / 100.0, i %% 1000, repeat(md5(i::text), 5) FROM generate_series(1, %d) i`, o.rows),
		`VACUUM ANALYZE products`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	rules := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte(warmRules), 0o600); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	_ = listener.Close()
	lethe := exec.CommandContext(ctx, binary, "run")
	lethe.Env = append(os.Environ(), "LETHE_POSTGRES_URL="+url, "LETHE_REDIS_URL="+rdb.URL(), "LETHE_RULES="+rules, "LETHE_LISTEN="+address,
		"LETHE_WARM_RATE=-1", fmt.Sprintf("LETHE_WARM_CONCURRENCY=%d", o.concurrency))
	var log bytes.Buffer
	lethe.Stdout, lethe.Stderr = &log, &log
	lethe.Cancel = func() error { return lethe.Process.Signal(syscall.SIGTERM) }
	began := time.Now()
	if err := lethe.Start(); err != nil {
		return err
	}
	defer func() {
		_ = lethe.Process.Signal(syscall.SIGTERM)
		_ = lethe.Wait()
		if err != nil {
			err = fmt.Errorf("%w\nlethe printed:\n%s", err, log.String())
		}
	}()
	samples, err := watch(ctx, conn, address, began)
	if err != nil {
		return err
	}
	o2, err := redis.ParseURL(rdb.URL())
	if err != nil {
		return err
	}
	client := redis.NewClient(o2)
	defer client.Close()
	n, err := client.DBSize(ctx).Result()
	if err != nil {
		return err
	}
	if n < int64(o.rows) {
		return fmt.Errorf("ready with %d keys in Redis, want %d", n, o.rows)
	}
	r := newReport(o, samples)
	fmt.Fprint(out, r.text())
	if o.picture != "" {
		return os.WriteFile(o.picture, []byte(r.svg()), 0o644)
	}
	return nil
}

// watch asks until the process is ready. A 200 while the warm-up has rows before
// it is an error, and so is a 503 that does not say what it waits for.
func watch(ctx context.Context, conn *pgx.Conn, address string, began time.Time) ([]sample, error) {
	var samples []sample
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	honest := 0
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
		code, reasons, err := readyz(ctx, address)
		if err != nil {
			continue // it does not listen yet
		}
		s := sample{at: time.Since(began), reason: strings.Join(reasons, "; ")}
		if _, err := fmt.Sscanf(metric(ctx, address, `lethe_warm_rows_total{entry="product"}`), "%d", &s.rows); err != nil {
			s.rows = 0
		}
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lethe' AND state = 'active' AND backend_type = 'client backend'`).Scan(&s.active); err != nil {
			return nil, err
		}
		// Loads are one transaction each.
		if err := conn.QueryRow(ctx, `SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()`).Scan(&s.statements); err != nil {
			return nil, err
		}
		samples = append(samples, s)
		switch {
		case code == http.StatusOK:
			if honest == 0 {
				return nil, errors.New("ready without having said that it warms")
			}
			return samples, nil
		case len(reasons) == 0:
			return nil, errors.New("503 without a reason")
		case strings.HasPrefix(reasons[0], "warming product: "):
			honest++
		}
	}
}

func readyz(ctx context.Context, address string) (code int, reasons []string, err error) {
	code, body, err := get(ctx, "http://"+address+"/readyz")
	var state struct{ Reasons []string }
	if err == nil {
		err = json.Unmarshal(body, &state)
	}
	return code, state.Reasons, err
}

func metric(ctx context.Context, address, name string) string {
	_, body, err := get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			var f float64
			if _, err := fmt.Sscan(value, &f); err == nil {
				return fmt.Sprintf("%.0f", f)
			}
		}
	}
	return ""
}

func get(ctx context.Context, url string) (int, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

func cores() string { return fmt.Sprintf("%d cores, load %s", runtime.NumCPU(), load()) }

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(raw))[:1], " ")
}
