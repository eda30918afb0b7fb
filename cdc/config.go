package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"time"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// Defaults of Config.
const (
	ConnectTimeoutDefault = 10 * time.Second
	HeartbeatDefault      = time.Second
	HeldBytesDefault      = 64 << 20
	HeldRowsDefault       = 100_000
	HeldForgottenDefault  = 10_000
	MarkIntervalDefault   = 100 * time.Millisecond
	ReceiveTimeoutDefault = 30 * time.Second
	StatusIntervalDefault = 10 * time.Second
	StoreIntervalDefault  = 2 * time.Second
)

// SourceTracker knows which era positions belong to and what was confirmed;
// *source.Tracker is one. Its methods are called by one goroutine at a time.
type SourceTracker interface {
	// Open is called in every session, with the slot in hand and before
	// anything is read from it.
	Open(ctx context.Context, conn source.Conn, hints source.Hints) (change.Source, []source.Due, error)
	// CheckSlot compares the slot with the stored position.
	CheckSlot(ctx context.Context, conn source.Conn) (source.Slot, []source.Due, error)
	// SlotLost is the raise for a slot that the Reader has just made.
	SlotLost() source.Due
	// StoreConfirmed stores a position before it is confirmed, and after all
	// raises that were due are durable.
	StoreConfirmed(ctx context.Context, conn source.Conn, confirmed change.LSN) error
	// Raised is called when all raises that were due are durable.
	Raised(ctx context.Context, conn source.Conn) error
}

// Config says what a Reader reads and how. Zero values take the defaults.
type Config struct {
	// URL of the database, for the replication connection and for two ordinary
	// ones. It must reach the primary itself, not a pooler. Required.
	URL string
	// Slot is the replication slot's name; it is made if it is missing.
	// Required.
	Slot string
	// Publications are the names of publications that exist. Required.
	Publications []string

	// Writer takes what is read. Required; the Reader does not close it.
	Writer stream.Writer
	// Source tracks era and stored position. Without it the era is 0, nothing
	// is stored, and a slot that somebody else moved is not noticed over a
	// restart.
	Source SourceTracker
	// Hints, if set, tells what others remember of the source; it is called
	// before each Source.Open.
	Hints func(ctx context.Context) (source.Hints, error)
	// DeadLetters keeps messages that can not be decoded. Optional.
	DeadLetters stream.DeadLetters

	// Logger is slog's discard handler by default.
	Logger *slog.Logger
	// Observer does nothing by default.
	Observer Observer

	// ConnectTimeout bounds each attempt to connect.
	ConnectTimeout time.Duration
	// Heartbeat is how often the Reader compares what it received with what was
	// written, and emits a logical message if it is behind. An idle database is
	// not written to. Negative: never.
	Heartbeat time.Duration
	// HeldBytes and HeldRows bound what the gate keeps of commits that are not
	// visible; HeldForgotten bounds how many more it remembers by their tables.
	HeldBytes     int64
	HeldRows      int
	HeldForgotten int
	// MarkInterval is how often v is told where no change tells it.
	MarkInterval time.Duration
	// ReceiveTimeout is how long the server may say nothing, though asked, until
	// the connection counts as dead.
	ReceiveTimeout time.Duration
	// StatusInterval is how often the server hears of us; a third of its
	// wal_sender_timeout if that is less.
	StatusInterval time.Duration
	// StoreInterval is how often, at most, the position is stored and confirmed
	// while changes come.
	StoreInterval time.Duration
	// WALBudget, in bytes: if the slot keeps more than that from being removed,
	// it is given up: dropped, made anew, everything raised. 0: no limit.
	WALBudget int64

	// Dial replaces the network dialer. Optional.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// slotName is what Postgres allows; names go into replication commands as they
// are, and those have no parameters.
var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// WithDefaults returns a copy with the zero values filled in.
func (c Config) WithDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.ConnectTimeout, ConnectTimeoutDefault)
	def(&c.Heartbeat, HeartbeatDefault)
	def(&c.MarkInterval, MarkIntervalDefault)
	def(&c.ReceiveTimeout, ReceiveTimeoutDefault)
	def(&c.StatusInterval, StatusIntervalDefault)
	def(&c.StoreInterval, StoreIntervalDefault)
	if c.HeldBytes == 0 {
		c.HeldBytes = HeldBytesDefault
	}
	if c.HeldRows == 0 {
		c.HeldRows = HeldRowsDefault
	}
	if c.HeldForgotten == 0 {
		c.HeldForgotten = HeldForgottenDefault
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Observer == nil {
		c.Observer = NopObserver{}
	}
	return c
}

// Validate returns every problem at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.URL == "" {
		bad("Config.URL is missing")
	} else if _, err := url.Parse(c.URL); err != nil {
		bad("Config.URL is no URL") // the error would quote it, and with it the password
	}
	if !slotName.MatchString(c.Slot) {
		bad("Config.Slot must match %s (got %q)", slotName, c.Slot)
	}
	if len(c.Publications) == 0 {
		bad("Config.Publications is empty")
	}
	for _, p := range c.Publications {
		if !slotName.MatchString(p) {
			bad("Config.Publications must match %s (got %q)", slotName, p)
		}
	}
	if c.Writer == nil {
		bad("Config.Writer is missing")
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"ConnectTimeout", c.ConnectTimeout},
		{"MarkInterval", c.MarkInterval},
		{"ReceiveTimeout", c.ReceiveTimeout},
		{"StatusInterval", c.StatusInterval},
		{"StoreInterval", c.StoreInterval},
	} {
		if d.value < 0 {
			bad("Config.%s must not be negative (got %v)", d.name, d.value)
		}
	}
	if c.HeldBytes < 0 || c.HeldRows < 0 || c.HeldForgotten < 0 || c.WALBudget < 0 {
		bad("Config.HeldBytes, HeldRows, HeldForgotten and WALBudget must not be negative")
	}
	return errors.Join(errs...)
}
