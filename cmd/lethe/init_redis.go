package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/keyscan"
	"github.com/lethe-cache/lethe/scaffold"
)

// initFromRedis reports what keys Redis holds, and proposes classes for them.
func (p *program) initFromRedis(ctx context.Context, f *initFlags) error {
	rdb, err := coherence.OpenClient(ctx, p.settings.RedisURL)
	if err != nil {
		return err
	}
	defer rdb.Close()
	sample, err := keyscan.Scan(ctx, rdb, keyscan.Options{Keys: f.keys, Time: f.time, Skip: ownKey})
	if err != nil {
		return err
	}
	var schema scaffold.Schema
	if p.settings.PostgresURL != "" {
		if schema, err = p.readWholeSchema(ctx, f); err != nil {
			return err
		}
	}
	patterns := keyscan.Patterns(sample)
	proposal, classes := scaffold.FromKeys(patterns, schema, scaffold.Options{Namespace: f.namespace})
	if f.out != "" && classes > 0 {
		if err := writeNew(p.stdout, f.out, f.force, proposal); err != nil {
			return err
		}
	}
	if classes == 0 {
		proposal = nil
	}
	if f.output == "json" {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(keyReport(sample, patterns, proposal))
	}
	return p.printKeys(sample, patterns, proposal, f.out)
}

// ownKey tells Lethe's own keys from those of applications.
func ownKey(key string) bool {
	return strings.HasPrefix(key, coherence.ReservedNamespace+":") || strings.HasPrefix(key, "{") && strings.HasSuffix(key, "}:t")
}

// patternJSON is a pattern as -o json prints it; sizes in bytes, times in
// seconds, null where there is none.
type patternJSON struct {
	Pattern string   `json:"pattern"`
	Keys    int64    `json:"keys"`
	Sampled int      `json:"sampled"`
	Bytes   int64    `json:"bytes"`
	NoTTL   int64    `json:"without_ttl"`
	TTL     *spread  `json:"ttl"`
	Idle    *float64 `json:"idle_median"`
	Large   int64    `json:"above_100kb"`
	Largest string   `json:"largest"`
	Most    int64    `json:"largest_bytes"`
	Types   []string `json:"types"`
	Collide []string `json:"collides"`
}

type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func keyReport(s *keyscan.Sample, patterns []*keyscan.Pattern, proposal []byte) map[string]any {
	list := make([]patternJSON, len(patterns))
	for i, x := range patterns {
		list[i] = patternJSON{Pattern: x.String(), Keys: x.Keys, Sampled: x.Sampled, Bytes: x.Bytes, NoTTL: x.NoTTL, Large: x.Large,
			Largest: x.Largest, Most: x.LargestBytes, Types: x.Types, Collide: append([]string{}, x.Collides...)}
		if x.TTLMax > 0 {
			list[i].TTL = &spread{x.TTLMin.Seconds(), x.TTLMedian.Seconds(), x.TTLMax.Seconds()}
		}
		if x.IdleMedian >= 0 {
			idle := x.IdleMedian.Seconds()
			list[i].Idle = &idle
		}
	}
	return map[string]any{"keys": s.Total, "sampled": len(s.Keys), "complete": s.Complete, "patterns": list, "rules": string(proposal)}
}

func (p *program) printKeys(s *keyscan.Sample, patterns []*keyscan.Pattern, proposal []byte, out string) error {
	how := "all were looked at"
	if !s.Complete {
		how = fmt.Sprintf("%d were looked at, the numbers below are estimates", len(s.Keys))
	}
	fmt.Fprintf(p.stdout, "%d keys; %s\n\n", s.Total, how)
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PATTERN\tKEYS\tBYTES\tWITHOUT TTL\tTTL LEFT (MIN MEDIAN MAX)\tIDLE\tABOVE 100 KB\tTYPES")
	for _, x := range patterns {
		ttl, idle := "-", "-"
		if x.TTLMax > 0 {
			ttl = fmt.Sprintf("%s %s %s", short(x.TTLMin), short(x.TTLMedian), short(x.TTLMax))
		}
		if x.IdleMedian >= 0 {
			idle = short(x.IdleMedian)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%d\t%s\n", printable(x.String()), x.Keys, x.Bytes, x.NoTTL, ttl, idle, x.Large, strings.Join(x.Types, ","))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, x := range patterns {
		for _, c := range x.Collides {
			fmt.Fprintf(p.stdout, "collision: %s and %s may build one key\n", printable(x.String()), printable(c))
		}
		if x.Large > 0 {
			fmt.Fprintf(p.stdout, "large: %s has %d bytes\n", printable(x.Largest), x.LargestBytes)
		}
	}
	if len(proposal) > 0 && out == "" {
		fmt.Fprintf(p.stdout, "\n%s", proposal)
	}
	return nil
}

func short(d time.Duration) string { return d.Round(time.Second).String() }

// printable keeps what is in names from being taken for commands by a terminal.
func printable(s string) string {
	quoted := fmt.Sprintf("%q", s)
	if quoted == `"`+s+`"` {
		return s
	}
	return quoted
}
