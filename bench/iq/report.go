package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"text/tabwriter"
	"time"
)

// Report is the JSON of one run.
type Report struct {
	Started time.Time `json:"started"`
	Servers string    `json:"servers"`
	Cores   int       `json:"cores"`
	Members int       `json:"members"`
	// Writes is the part of the actions that write.
	Writes float64  `json:"writes"`
	Cells  []Result `json:"cells"`

	duration time.Duration
	runs     int
}

// Result is what one cell of the table shows.
type Result struct {
	Variant  string `json:"variant"`
	Order    string `json:"order"`
	Sessions int    `json:"sessions"`
	// Deaths is the part of the writers that ended right after COMMIT.
	Deaths  float64 `json:"deaths"`
	Reads   int64   `json:"reads"`
	Writes  int64   `json:"writes"`
	Seconds float64 `json:"seconds"`
	// HitPercent of the reads did not read the database themselves.
	HitPercent float64 `json:"hit_percent"`
	Wrong      int64   `json:"wrong"`
	// WrongPercent is the published number.
	WrongPercent float64 `json:"wrong_percent"`
	// WorstMs is the longest that a write had ended before a read that lacked it
	// began.
	WorstMs float64 `json:"worst_ms"`
	// Left are cached pages, of Kept, that differ from the database when all is
	// quiet.
	Left int `json:"left"`
	Kept int `json:"kept"`

	exact, lethe bool
}

func newReport(o options, names string) *Report {
	return &Report{Started: time.Now().UTC(), Servers: names, Cores: runtime.NumCPU(), Members: o.members, Writes: o.writes, duration: o.duration}
}

// patience is how long what is on its way is given to arrive: only Lethe has
// anything on its way once no session acts any more.
const patience = 10 * time.Second

// measure runs one cell.
func (r *Report) measure(ctx context.Context, w *world, v variant, sessions int, deaths float64) (err error) {
	r.runs++
	cached, err := v.open(ctx, w, fmt.Sprintf("run%d:", r.runs))
	if err != nil {
		return fmt.Errorf("%v: %w", &v, err)
	}
	defer func() { err = errors.Join(err, cached.close()) }()
	c := newCell(w.network, cached, sessions)
	c.writes, c.deaths = r.Writes, deaths
	if err := c.warm(ctx); err != nil {
		return fmt.Errorf("%v: %w", &v, err)
	}
	began := time.Now()
	if err := c.run(ctx, func() bool { return time.Since(began) >= r.duration }); err != nil {
		return fmt.Errorf("%v: %w", &v, err)
	}
	took := time.Since(began)
	result := c.result(v)
	wait := time.Duration(0)
	if _, result.lethe = cached.(*throughLethe); result.lethe {
		wait = patience
	}
	result.Deaths, result.Seconds = deaths, took.Seconds()
	if result.Left, result.Kept, err = c.left(ctx, wait); err != nil {
		return fmt.Errorf("%v: %w", &v, err)
	}
	r.Cells = append(r.Cells, result)
	return nil
}

// result is what the sessions have seen.
func (c *cell) result(v variant) Result {
	r := Result{
		Variant: v.name, Order: v.order, Sessions: c.sessions, exact: v.exact,
		Reads: c.reads.Load(), Writes: c.wrote.Load(), Wrong: c.wrong.Load(),
		WorstMs: float64(c.worst.Load()) / float64(time.Millisecond),
	}
	if r.Reads > 0 {
		r.WrongPercent = 100 * float64(r.Wrong) / float64(r.Reads)
		r.HitPercent = 100 - 100*float64(c.misses.Load())/float64(r.Reads)
	}
	return r
}

// print renders the two tables.
func (r *Report) print(w io.Writer) error {
	for _, deaths := range []bool{false, true} {
		if deaths {
			fmt.Fprintf(w, "\nThe same, and some writers end between COMMIT and what they would do after it:\n\n")
		}
		table := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
		fmt.Fprint(table, "sessions\tcache\twriter\treads\twrites\thits\twrong reads\tlate by at most\tleft wrong\t\n")
		for i := range r.Cells {
			c := &r.Cells[i]
			if (c.Deaths > 0) != deaths {
				continue
			}
			late := "-"
			if c.Wrong > 0 {
				late = fmt.Sprintf("%.0f ms", c.WorstMs)
			}
			fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%d\t%.0f%%\t%s\t%s\t%d of %d\t\n",
				c.Sessions, c.Variant, c.Order, c.Reads, c.Writes, c.HitPercent, percent(c.WrongPercent), late, c.Left, c.Kept)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// percent never shows something as nothing.
func percent(p float64) string {
	switch {
	case p == 0:
		return "0"
	case p < 0.01:
		return fmt.Sprintf("%.4f%%", p)
	}
	return fmt.Sprintf("%.2f%%", p)
}

func (r *Report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory of the report: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// verdict is an error if Lethe was wrong: a read under a token, or anything that
// stayed, with tokens or without.
func (r *Report) verdict() error {
	var errs []error
	for i := range r.Cells {
		c := &r.Cells[i]
		if c.Reads == 0 {
			errs = append(errs, fmt.Errorf("%s (%s), %d sessions: no read", c.Variant, c.Order, c.Sessions))
		}
		if c.exact && c.Wrong > 0 {
			errs = append(errs, fmt.Errorf("%s (%s), %d sessions: %d wrong reads", c.Variant, c.Order, c.Sessions, c.Wrong))
		}
		if c.lethe && c.Left > 0 {
			errs = append(errs, fmt.Errorf("%s (%s), %d sessions: %d pages left wrong", c.Variant, c.Order, c.Sessions, c.Left))
		}
	}
	return errors.Join(errs...)
}
