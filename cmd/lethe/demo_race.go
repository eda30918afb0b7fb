package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/naive"
)

const (
	raceProduct     = "7"
	raceWait        = 15 * time.Second
	naiveKey        = "plain-del:product:" + raceProduct
	naivePlace      = "demo_plain_del"
	raceRow         = `SELECT json_build_object('id', id, 'price', price)::text FROM public.products WHERE id = ` + raceProduct
	raceUpdate      = `UPDATE public.products SET price = price + 5 WHERE id = ` + raceProduct
	raceColumnWidth = 46
)

// race lets a slow reader write an old value back after the invalidation: once
// into a cache that is emptied by a plain DEL, once into Lethe's. Both see the
// same change of the same row.
func (d *demo) race(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*raceWait)
	defer cancel()
	deleted, stop, err := d.startNaive(ctx)
	if err != nil {
		return fmt.Errorf("start the plain DEL cache: %w", err)
	}
	defer stop()
	name := d.set.FullName("product:" + raceProduct)
	d.line3("\nTHE STALE-SET RACE", "a cache with plain DEL", "Lethe")

	// Nothing is cached, and a slow reader misses in both.
	if err := errors.Join(d.redis.Del(ctx, naiveKey).Err(), d.redis.Unlink(ctx, name).Err()); err != nil {
		return err
	}
	ticket, err := d.cache.begin(ctx, name)
	if err != nil {
		return err
	}
	var old string
	if err := d.pool.QueryRow(ctx, raceRow).Scan(&old); err != nil {
		return err
	}
	oldEntry, err := d.cache.load(ctx, name)
	if err != nil {
		return err
	}
	d.line3("slow reader: miss, reads the row", "price "+price(old), "price "+price(oldEntry)+", holds a ticket")

	forgotten := d.view.forgotten(name)
	if _, err := d.pool.Exec(ctx, raceUpdate); err != nil {
		return err
	}
	d.view.changed()
	if err := awaitAll(ctx, deleted, forgotten); err != nil {
		return fmt.Errorf("wait for both invalidations: %w", err)
	}
	d.line3("writer: commits another price", "DEL sent", "invalidated, the ticket is dead")

	if err := d.redis.Set(ctx, naiveKey, old, 0).Err(); err != nil {
		return err
	}
	reason, err := d.cache.store.Fill(ctx, coherence.FillRequest{Ticket: ticket, Payload: []byte(oldEntry), TTL: time.Hour})
	if err != nil {
		return err
	}
	verdict := "refused (" + reason.String() + ")"
	if reason == coherence.Stored {
		verdict = "STORED"
	}
	d.line3("slow reader: writes the old value back", "stored", verdict)
	return d.raceResult(ctx, name)
}

// raceResult asks both caches and the database once more.
func (d *demo) raceResult(ctx context.Context, name string) error {
	kept, err := d.redis.Get(ctx, naiveKey).Result()
	if err != nil {
		return err
	}
	if err := d.cache.get(ctx, name); err != nil {
		return err
	}
	served, err := d.cache.value(ctx, name)
	if err != nil {
		return err
	}
	truth, err := d.cache.load(ctx, name)
	if err != nil {
		return err
	}
	naiveVerdict, letheVerdict := "fresh", "fresh"
	if price(kept) != price(truth) {
		naiveVerdict = "STALE, for ever"
	}
	if price(served) != price(truth) {
		letheVerdict = "STALE"
	}
	d.line3("every later reader gets", fmt.Sprintf("price %s: %s", price(kept), naiveVerdict), fmt.Sprintf("price %s: %s", price(served), letheVerdict))
	d.line3("the database says", "price "+price(truth), "price "+price(truth))
	if letheVerdict != "fresh" {
		return errors.New("the race left a stale entry in Lethe's cache")
	}
	return d.redis.Del(ctx, naiveKey).Err()
}

func (d *demo) line3(what, plain, lethe string) {
	fmt.Fprintf(d.out, "%-40s %-*s %s\n", what, raceColumnWidth-16, plain, lethe)
}

// price is the price in a value, whatever its other fields.
func price(value string) string {
	var v struct{ Price json.Number }
	if json.Unmarshal([]byte(value), &v) != nil || v.Price == "" {
		return "?"
	}
	return v.Price.String()
}

// startNaive runs the consumer that everybody writes first, on a slot of its
// own that goes with its connection. deleted is closed with its first DEL.
func (d *demo) startNaive(ctx context.Context) (deleted <-chan struct{}, stop func(), err error) {
	if _, err := d.pool.Exec(ctx, "CREATE PUBLICATION "+naivePlace+" FOR TABLE public.products"); err != nil {
		return nil, nil, err
	}
	first := make(chan struct{})
	sent := false
	consumer := &naive.Consumer{
		PostgresURL: d.servers.postgresURL, Slot: naivePlace, Publication: naivePlace, Redis: d.redis,
		Key: func(_ string, row map[string]string) string {
			if row["id"] != raceProduct {
				return ""
			}
			return naiveKey
		},
		Deleted: func(string) {
			if !sent { // one goroutine calls it
				sent = true
				close(first)
			}
		},
	}
	running, cancel := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- consumer.Run(running, func() { close(ready) }) }()
	select {
	case <-ready:
		return first, func() { cancel(); <-done }, nil
	case err := <-done:
		cancel()
		return nil, nil, err
	}
}

func awaitAll(ctx context.Context, events ...<-chan struct{}) error {
	for _, e := range events {
		select {
		case <-e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
