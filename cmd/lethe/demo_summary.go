package main

import (
	"context"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/audit"
)

// auditTimeout bounds the comparison of every entry with the database.
const auditTimeout = 60 * time.Second

// summary compares every entry with the database and says what the
// demonstration has shown. A stale entry is an error.
func (d *demo) summary(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, auditTimeout)
	defer cancel()
	report, err := audit.Compare(ctx, audit.Config{
		Store: d.line.up.store, Cache: audit.OnRedis(d.redis), Plan: d.cache.plan, Loader: d.cache.loader, Logger: d.log,
	})
	if err != nil {
		return fmt.Errorf("compare the cache with the database: %w", err)
	}
	n := d.view.numbers()
	fmt.Fprintf(d.out, "\nSUMMARY\n")
	for _, row := range []struct{ what, value string }{
		{"changes committed", fmt.Sprint(n.changes)},
		{"invalidations", fmt.Sprint(n.invalidations)},
		{"dead letters", fmt.Sprint(n.letters)},
		{"commit to evict, p50", milliseconds(n.p50)},
		{"commit to evict, p99", milliseconds(n.p99)},
		{"entries compared with the database", fmt.Sprint(report.Checked)},
	} {
		fmt.Fprintf(d.out, "  %-36s %s\n", row.what, row.value)
	}
	for _, f := range report.Findings {
		fmt.Fprintf(d.out, "  %s: %s is %s, the database says %s\n", f.Kind, f.Name, f.Cached, f.Truth)
	}
	fmt.Fprintf(d.out, "stale entries: %d\n", report.Stale)
	switch {
	case report.Stale > 0:
		return fmt.Errorf("%d stale entries", report.Stale)
	case !report.OK():
		return fmt.Errorf("%d entries differ from the database and their changes were not applied in time", report.Unsettled)
	case report.Checked == 0 || n.invalidations == 0:
		return fmt.Errorf("nothing was shown: %d entries compared, %d invalidations", report.Checked, n.invalidations)
	}
	return nil
}
