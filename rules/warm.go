package rules

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Bounds of a warm-up.
const (
	// WarmEveryMin and WarmEveryMax bound `every`.
	WarmEveryMin = time.Second
	WarmEveryMax = 31 * 24 * time.Hour
	// WarmDeadlineDefault bounds a run of an entry that says no deadline.
	WarmDeadlineDefault = 10 * time.Minute
	// WarmDeadlineMax is the longest deadline.
	WarmDeadlineMax = 24 * time.Hour
	// WarmPriorityDefault is the priority where none is said.
	WarmPriorityDefault = 50
	// WarmPriorityMax is the highest priority.
	WarmPriorityMax = 100
	// PrefetchMax is how many templates `prefetch` of an entry may list.
	PrefetchMax = 16
)

// Warm is a declared warm-up: entries that are filled before they are asked
// for.
type Warm struct {
	// Entry names the class.
	Entry string
	// SQL selects the placeholders of the class's key, one row for each entry.
	SQL string
	// OnStart runs it before the process says that it is ready.
	OnStart bool
	// Every is the time from one run to the next, in step with the clock: all
	// processes have the same instants. 0: none.
	Every time.Duration
	// Cron is a schedule of five fields, At the times of day; both in Zone. ""
	// and nil: none.
	Cron string
	At   []string
	Zone *time.Location
	// Limit is the greatest number of rows that a run takes; 0: all.
	Limit int
	// Deadline bounds one run: what is not filled then is left to readers. Never
	// 0.
	Deadline time.Duration
	// Priority orders the runs that are due at the same time, the highest first:
	// 0 to WarmPriorityMax.
	Priority int

	schedules  []cron.Schedule
	pos, sqlAt place
}

// Scheduled reports whether it runs by itself after the start.
func (w *Warm) Scheduled() bool { return w.Every > 0 || len(w.schedules) > 0 }

// Next is the first instant after t at which a run is due; false if none is.
//
// `every` counts from the Unix epoch, so that processes that know nothing of
// each other agree on what is one instant.
func (w *Warm) Next(t time.Time) (time.Time, bool) {
	var first time.Time
	take := func(at time.Time) {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if w.Every > 0 {
		since := time.Duration(t.UnixNano())
		take(time.Unix(0, int64(since-since%w.Every+w.Every)))
	}
	for _, s := range w.schedules {
		take(s.Next(t))
	}
	return first, !first.IsZero()
}

// ID names the warm-up in shared state: the same declaration has the same ID
// in every process.
func (w *Warm) ID() string {
	return w.Entry + ":" + strconv.FormatUint(hashText(w.SQL), 16)
}

// Statement is the SELECT that a run executes. It stands in a subquery, which
// holds the limit and lets nothing but a query through.
func (w *Warm) Statement(limit int) string {
	sql := "SELECT * FROM (\n" + strings.TrimRight(w.SQL, "; \t\r\n") + "\n) AS lethe_warm"
	if w.Limit > 0 && (limit <= 0 || w.Limit < limit) {
		limit = w.Limit
	}
	if limit > 0 {
		sql += " LIMIT " + strconv.Itoa(limit)
	}
	return sql
}

// HTTPLoader asks the application for values.
type HTTPLoader struct {
	// URL is POSTed to: https, or http to this machine, unless Insecure.
	URL string
	// SecretEnv names the environment variable that holds the secret of the
	// signature.
	SecretEnv string
	// Timeout bounds one request.
	Timeout time.Duration
	// Batch is the greatest number of keys of one request.
	Batch int
	// Insecure permits http to other machines.
	Insecure bool
}

// Bounds of an HTTPLoader.
const (
	HTTPTimeoutDefault = 5 * time.Second
	HTTPTimeoutMax     = 5 * time.Minute
	HTTPBatchDefault   = 100
	HTTPBatchMax       = 1000
)

// Statements returns the queries of the set that a database can describe
// before they run; Schema.Statements answers by them.
func (s *Set) Statements() []string {
	var out []string
	for _, w := range s.Warm {
		out = append(out, w.Statement(0))
	}
	for _, c := range s.Entries {
		if c.Load != nil && c.Load.SQL != "" {
			out = append(out, c.Load.Statement())
		}
	}
	return out
}

// Statement is load.sql with $1, $2, ... in place of its parameters, as a
// database takes it: $n is Params[n-1], an array.
func (l *Loader) Statement() string { return l.Typed(nil) }

// Typed is Statement with parameters that say what they are arrays of, for where
// the database can not see it: types has a name of a type for each of Params.
func (l *Loader) Typed(types []string) string {
	return param.ReplaceAllStringFunc(l.SQL, func(m string) string {
		i := slices.Index(l.Params, m[1:])
		switch {
		case m[0] != '@' || i < 0:
			return m
		case types == nil:
			return "$" + strconv.Itoa(i+1)
		}
		return "($" + strconv.Itoa(i+1) + "::" + types[i] + "[])"
	})
}
