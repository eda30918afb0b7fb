package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// How much the shop is under load.
const (
	demoReaders      = 4
	demoWriters      = 2
	demoWritePause   = 8 * time.Millisecond
	demoProducts     = 1000
	demoUsers        = 400
	demoFillBatch    = 200
	demoReadsPerTurn = 20
)

// fill warms the cache as an application that has run for a while.
func (d *demo) fill(ctx context.Context) error {
	began := time.Now()
	var names []string
	for i := 1; i <= demoProducts; i++ {
		names = append(names, d.set.FullName(fmt.Sprintf("product:%d", i)), d.set.FullName(fmt.Sprintf("rating:%d", i)))
	}
	for i := 1; i <= demoUsers; i++ {
		names = append(names, d.set.FullName(fmt.Sprintf("user:%d", i)), d.set.FullName(fmt.Sprintf("orders:user:%d", i)))
	}
	stored := 0
	for start := 0; start < len(names); start += demoFillBatch {
		n, err := d.cache.fill(ctx, names[start:min(start+demoFillBatch, len(names))])
		if err != nil {
			return fmt.Errorf("fill the cache: %w", err)
		}
		stored += n
	}
	fmt.Fprintf(d.out, "filled %d entries in %s; now writers change rows while readers go on filling, for %s\n",
		stored, time.Since(began).Round(time.Millisecond), d.duration)
	return nil
}

// load runs writers and readers until the time is up or ctx ends.
func (d *demo) load(ctx context.Context) error {
	// No deadline: it would reach the sockets, and what is under way when the
	// time is up is to be finished.
	ctx, cancel := context.WithCancel(ctx)
	defer time.AfterFunc(d.duration, cancel).Stop()
	defer cancel()
	d.view.start()
	defer d.view.stop()
	var wait sync.WaitGroup
	errs := make([]error, demoReaders+demoWriters)
	for i := range demoReaders {
		wait.Go(func() { errs[i] = d.read(ctx, rand.New(rand.NewPCG(uint64(i), 1))) })
	}
	for i := range demoWriters {
		wait.Go(func() { errs[demoReaders+i] = d.write(ctx, rand.New(rand.NewPCG(uint64(i), 2))) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// read asks for entries through the cache, as the shop's pages would.
func (d *demo) read(ctx context.Context, random *rand.Rand) error {
	for ctx.Err() == nil {
		for range demoReadsPerTurn {
			name := fmt.Sprintf("product:%d", 1+random.IntN(demoProducts))
			switch random.IntN(4) {
			case 0:
				name = fmt.Sprintf("rating:%d", 1+random.IntN(demoProducts))
			case 1:
				name = fmt.Sprintf("orders:user:%d", 1+random.IntN(demoUsers))
			}
			if err := d.cache.get(ctx, d.set.FullName(name)); err != nil && ctx.Err() == nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
		}
		pause(ctx, time.Millisecond)
	}
	return nil
}

// write commits one change after another.
func (d *demo) write(ctx context.Context, random *rand.Rand) error {
	for ctx.Err() == nil {
		sql, args := demoChange(random)
		if _, err := d.pool.Exec(ctx, sql, args...); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("change the shop: %w", err)
		}
		d.view.changed()
		pause(ctx, time.Duration(random.Int64N(int64(2*demoWritePause))))
	}
	return nil
}

// demoChange is a statement of the shop's everyday life.
func demoChange(random *rand.Rand) (sql string, args []any) {
	product, user := 1+random.IntN(demoProducts), 1+random.IntN(demoUsers)
	switch random.IntN(10) {
	case 0:
		return `INSERT INTO public.orders (user_id) VALUES ($1)`, []any{user}
	case 1:
		return `INSERT INTO public.reviews (product_id, user_id, stars) VALUES ($1, $2, $3)`, []any{product, user, 1 + random.IntN(5)}
	case 2:
		return `UPDATE public.users SET name = name || '.' WHERE id = $1`, []any{user}
	case 3:
		return `UPDATE public.products SET category_id = 1 + (category_id + 3) % 16, updated_at = now() WHERE id = $1`, []any{product}
	case 4:
		return `UPDATE public.categories SET name = name || '.' WHERE id = $1`, []any{1 + random.IntN(16)}
	default:
		return `UPDATE public.products SET price = round(price * 1.01 + 0.01, 2), updated_at = now() WHERE id = $1`, []any{product}
	}
}

// pause waits, or returns when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
