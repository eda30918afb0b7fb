package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is the JSON file of one run.
type Report struct {
	Started time.Time `json:"started"`
	// Mode is quick or full.
	Mode    string  `json:"mode"`
	Seconds float64 `json:"seconds"`
	Sizes   sizes   `json:"sizes"`
	Machine Machine `json:"machine"`
	// Summary has the number that each bound is for: under the metric's name,
	// with _a or _b behind it where it was measured under both workloads.
	Summary map[string]float64 `json:"summary"`
	// Metrics are by name.
	Metrics map[string]*Metric `json:"metrics"`
}

func newReport(started time.Time, s sizes, machine Machine, m *metrics) Report {
	r := Report{
		Started: started.UTC(), Mode: s.Mode, Seconds: time.Since(started).Seconds(), Sizes: s, Machine: machine,
		Summary: map[string]float64{}, Metrics: map[string]*Metric{},
	}
	for _, metric := range m.list {
		name := metric.definition.name
		r.Metrics[name] = metric
		for workload, result := range metric.Results {
			got := result.headline(metric.definition.absolute)
			switch {
			case got == nil:
			case workload == noWorkload:
				r.Summary[name] = got.Median
			default:
				r.Summary[name+"_"+strings.ToLower(workload)] = got.Median
			}
		}
	}
	return r
}

// write puts the report into path, making its directory.
func (r Report) write(path string) error {
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

// print renders the metrics for people: one line to a metric and workload,
// medians, with the spread of what the bound is for.
func (m *metrics) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tLOAD\tVALUE\tBASELINE\tRATIO\tMIN..MAX\tTARGET\tMET")
	var below []string
	for _, metric := range m.list {
		d := metric.definition
		if len(metric.Results) == 0 {
			fmt.Fprintf(table, "%s\t\tnot measured\t\t\t\t\t\n", d.name)
			continue
		}
		for _, workload := range slices.Sorted(maps.Keys(metric.Results)) {
			r, label := metric.Results[workload], workload
			if workload == noWorkload {
				label = ""
			}
			if r.Value == nil {
				fmt.Fprintf(table, "%s\t%s\tnot measured\t\t\t\t%s\t\n", d.name, label, target(d, workload))
				below = append(below, fmt.Sprintf("%s %s: not measured: %s", d.name, label, r.Unmeasured))
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.name, label,
				quantity(r.Value, d.unit), quantity(r.Baseline, d.unit), plain(r.Ratio), spread(r.headline(d.absolute)), target(d, workload), answer(r.Met))
			if r.Note != "" {
				below = append(below, fmt.Sprintf("%s %s: %s", d.name, label, r.Note))
			}
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range below {
		fmt.Fprintln(w, strings.Replace(line, " :", ":", 1))
	}
	return nil
}

// quantity renders the median with its unit; rates in thousands.
func quantity(s *Summary, unit string) string {
	if s == nil {
		return "-"
	}
	if strings.HasSuffix(unit, "/s") {
		return fmt.Sprintf("%.1f k%s", s.Median/1000, unit)
	}
	return fmt.Sprintf("%.3g %s", s.Median, unit)
}

func plain(s *Summary) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", s.Median)
}

func spread(s *Summary) string {
	if s == nil || len(s.Samples) < 2 {
		return "-"
	}
	return fmt.Sprintf("%.2f..%.2f", s.Min, s.Max)
}

func target(d definition, workload string) string {
	bound, ok := d.bounds[workload]
	switch {
	case !ok:
		return "-"
	case d.ceiling:
		return fmt.Sprintf("<= %g", bound)
	}
	return fmt.Sprintf(">= %g", bound)
}

func answer(met *bool) string {
	switch {
	case met == nil:
		return "-"
	case *met:
		return "yes"
	}
	return "no"
}
