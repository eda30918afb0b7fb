package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// childCommand is the first argument of this program when it is its own child.
const childCommand = "read-one-transaction"

// memoryUse is what the child reports.
type memoryUse struct {
	Rows int64 `json:"rows"`
	// TenthMB is the resident memory after a tenth of the rows, PeakMB the
	// most that it ever was.
	TenthMB float64 `json:"tenth_mb"`
	PeakMB  float64 `json:"peak_mb"`
}

// measureMemory streams one large transaction through the reader in a process
// of its own, and reports the resident memory of that process at its peak.
func (e *env) measureMemory(ctx context.Context) (err error) {
	metric := e.sizes.MemoryMetric
	if !e.metrics.wants(metric) {
		return nil
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		return errors.New("resident memory is read from /proc, which is not here")
	}
	const slot = "bench_memory"
	if err := e.db.createSlot(ctx, slot); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	_, err = e.db.conn.Exec(ctx, `INSERT INTO bench SELECT i, i % 100, 0, repeat('x', 200), now()
		FROM generate_series($1::bigint + 1, $1::bigint + $2::bigint) i`, e.tableRows, e.sizes.MemoryRows)
	if err != nil {
		return fmt.Errorf("write one transaction of %d rows: %w", e.sizes.MemoryRows, err)
	}
	use, err := e.readInChild(ctx, slot)
	if err != nil {
		return err
	}
	e.metrics.values(metric, noWorkload, []float64{use.PeakMB})
	e.metrics.note(metric, noWorkload, fmt.Sprintf("%.0f MB after a tenth of the rows, %.0f MB at the peak", use.TenthMB, use.PeakMB))
	return nil
}

func (e *env) readInChild(ctx context.Context, slot string) (memoryUse, error) {
	var use memoryUse
	self, err := os.Executable()
	if err != nil {
		return use, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, childCommand, "-postgres", e.db.server.URL("postgres"), "-slot", slot, "-rows", strconv.Itoa(e.sizes.MemoryRows))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return use, fmt.Errorf("read the transaction: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := json.Unmarshal(out, &use); err != nil {
		return use, fmt.Errorf("read the child's report: %w", err)
	}
	if use.Rows < int64(e.sizes.MemoryRows) {
		return use, fmt.Errorf("reader handed on %d of %d rows", use.Rows, e.sizes.MemoryRows)
	}
	return use, nil
}

// memoryChild is the child: it reads until it has seen the rows, prints a
// memoryUse and ends.
func memoryChild(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet(childCommand, flag.ContinueOnError)
	fs.SetOutput(stderr)
	url := fs.String("postgres", "", "database")
	slot := fs.String("slot", "", "slot")
	rows := fs.Int("rows", 0, "rows to read")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	use, err := readAndWatch(ctx, *url, *slot, *rows, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err == nil {
		err = json.NewEncoder(stdout).Encode(use)
	}
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return 0
}

func readAndWatch(ctx context.Context, url, slot string, rows int, logger *slog.Logger) (use memoryUse, err error) {
	sink := newNullWriter(rows)
	r, err := startReader(ctx, url, slot, sink, logger)
	if err != nil {
		return use, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-sink.done:
			use.Rows = sink.rows.Load()
			use.PeakMB, err = residentMB("VmHWM")
			return use, err
		case err := <-r.failed:
			return use, fmt.Errorf("reader ended: %w", err)
		case <-ctx.Done():
			return use, ctx.Err()
		case <-ticker.C:
			if use.TenthMB == 0 && sink.rows.Load() >= int64(rows/10) {
				if use.TenthMB, err = residentMB("VmRSS"); err != nil {
					return use, err
				}
			}
		}
	}
}

// residentMB reads one line of /proc/self/status, in MB of 2^20 bytes.
func residentMB(field string) (float64, error) {
	data, err := os.ReadFile(filepath.Join("/proc", "self", "status"))
	if err != nil {
		return 0, fmt.Errorf("read resident memory: %w", err)
	}
	return statusMB(string(data), field)
}

// statusMB finds a line such as "VmHWM:   12345 kB".
func statusMB(status, field string) (float64, error) {
	for line := range strings.Lines(status) {
		rest, ok := strings.CutPrefix(line, field+":")
		if !ok {
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
		if err != nil {
			return 0, fmt.Errorf("parse %s: %w", strings.TrimSpace(line), err)
		}
		return kb / 1024, nil
	}
	return 0, fmt.Errorf("no %s in /proc/self/status", field)
}
