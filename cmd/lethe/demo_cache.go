package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// demoCache reads through the cache as an application would: a hit is a GET, a
// miss is filled by the protocol.
type demoCache struct {
	store  *coherence.Store
	redis  redis.UniversalClient
	loader *warmer.Loader
	warmer *warmer.Warmer
	plan   *rules.Plan
}

func newDemoCache(store *coherence.Store, rdb redis.UniversalClient, loader *warmer.Loader, set *rules.Set) (*demoCache, error) {
	plan, err := set.Compile()
	if err != nil {
		return nil, err
	}
	w, err := warmer.New(warmer.Config{Store: store, Loader: loader, Rules: func() *rules.Plan { return plan }})
	if err != nil {
		return nil, err
	}
	return &demoCache{store: store, redis: rdb, loader: loader, warmer: w, plan: plan}, nil
}

// fill stores entries by their full names and returns how many were accepted.
func (c *demoCache) fill(ctx context.Context, names []string) (stored int, err error) {
	classes := map[string][]string{}
	for _, name := range names {
		class := c.plan.ClassOf([]byte(name))
		if class == nil {
			return stored, fmt.Errorf("%s belongs to no class", name)
		}
		classes[class.Name] = append(classes[class.Name], name)
	}
	for class, of := range classes {
		result, err := c.warmer.Fill(ctx, class, of, warmer.Options{})
		if err != nil {
			return stored, err
		}
		stored += result.Stored
	}
	return stored, nil
}

// get serves an entry, filling it at a miss. A refused fill is no error: the
// caller has its value.
func (c *demoCache) get(ctx context.Context, name string) error {
	hit, err := c.hit(ctx, name)
	if hit || err != nil {
		return err
	}
	_, err = c.fill(ctx, []string{name})
	return err
}

func (c *demoCache) hit(ctx context.Context, name string) (bool, error) {
	raw, err := c.redis.Get(ctx, name).Bytes()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if c.plan.ClassOf([]byte(name)).Mode == rules.Plain {
		return true, nil
	}
	header, _, err := coherence.Parse(raw)
	return err == nil && header.State == coherence.StateValue && time.Now().UnixMicro() < header.HardExpiry, nil
}

// begin takes the ticket of one entry.
func (c *demoCache) begin(ctx context.Context, name string) (coherence.Ticket, error) {
	class := c.plan.ClassOf([]byte(name)).Name
	control, err := c.store.Control(ctx, class)
	if err != nil {
		return coherence.Ticket{}, err
	}
	begun, err := c.store.Begin(ctx, coherence.BeginRequest{Name: name, Known: control.Known(class)})
	return begun.Ticket, err
}

// load reads one value from the database.
func (c *demoCache) load(ctx context.Context, name string) (string, error) {
	class := c.plan.ClassOf([]byte(name))
	loaded, err := c.loader.Load(ctx, c.plan.Set(), class, []string{name})
	if err != nil {
		return "", err
	}
	return string(loaded.Values[0]), nil
}

// value is what a reader is served now, "" for a miss.
func (c *demoCache) value(ctx context.Context, name string) (string, error) {
	hit, err := c.hit(ctx, name)
	if !hit || err != nil {
		return "", err
	}
	raw, err := c.redis.Get(ctx, name).Bytes()
	if err != nil {
		return "", err
	}
	_, payload, err := coherence.Parse(raw)
	return string(payload), err
}
