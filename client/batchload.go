package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// MaxBatchDefault is how many keys one call of a batch loader is given at most.
const MaxBatchDefault = 1000

// batchLoader loads many keys at once.
type batchLoader[T any] func(ctx context.Context, keys []string, l *BatchLoad) (map[string]T, error)

// LoadManyWith gives the class a loader of many keys, for GetMany, and for Get
// and Refresh (a batch of one) unless the class has LoadWith too. T is that of
// Entries. The loader returns the values by key. A key that it leaves out does
// not exist: that is ErrNotFound for Get, and cached with NegativeTTL. An error
// is that of all keys; one that is, or wraps, a *BatchError is that of its keys
// only. See BatchLoad for what a loader may do.
func LoadManyWith[T any](load func(ctx context.Context, keys []string, l *BatchLoad) (map[string]T, error)) Option {
	return func(c *class) error {
		if load == nil {
			return errors.New("LoadManyWith is nil")
		}
		c.loadMany = batchLoader[T](load)
		return nil
	}
}

// MaxBatch bounds the keys that one call of a batch loader is given (default
// 1,000): a GetMany that misses more makes several calls, side by side as far
// as MaxLoads lets them.
func MaxBatch(keys int) Option {
	return func(c *class) error {
		if keys <= 0 {
			return fmt.Errorf("MaxBatch is %d: want a positive number", keys)
		}
		c.maxBatch = keys
		return nil
	}
}

// BatchError is the error of some keys of a batch: of GetMany, or of a batch
// loader whose other keys are well. Keys has an error for each.
type BatchError struct {
	Keys map[string]error
}

// Error tells how many there are, and one of them.
func (b *BatchError) Error() string {
	if len(b.Keys) == 0 {
		return "no key failed"
	}
	keys := b.sorted()
	text := fmt.Sprintf("key %q: %v", keys[0], b.Keys[keys[0]])
	if n := len(keys) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more keys)", n)
	}
	return text
}

// Unwrap makes errors.Is and errors.As look at every key's error.
func (b *BatchError) Unwrap() []error {
	errs := make([]error, 0, len(b.Keys))
	for _, k := range b.sorted() {
		errs = append(errs, b.Keys[k])
	}
	return errs
}

func (b *BatchError) sorted() []string {
	keys := make([]string, 0, len(b.Keys))
	for k := range b.Keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// BatchLoad is what a batch loader is given: what Load is to a loader, for many
// keys. What is read through Query and QueryRow, and the entries that are read
// with Get under the loader's context, count for every key of the batch: one
// statement that may not be cached refuses all of them, and the least stamp is
// that of all. The rules of Load apply otherwise.
type BatchLoad struct {
	// common has what counts for every key; in a batch of one it is that key's.
	common *Load
	loads  map[string]*Load
}

// Tag names things that the value of a key depends on, without the namespace.
func (b *BatchLoad) Tag(key string, tags ...string) {
	if l := b.of(key); l != nil {
		l.Tag(tags...)
	}
}

// TTL replaces the class's TTL for the value of a key.
func (b *BatchLoad) TTL(key string, d time.Duration) {
	if l := b.of(key); l != nil {
		l.TTL(d)
	}
}

// DependsOn says that the value of a key was made from what other keys stand
// for; see Load.DependsOn.
func (b *BatchLoad) DependsOn(key string, keys ...string) {
	if l := b.of(key); l != nil {
		l.DependsOn(keys...)
	}
}

// DoNotCache hands the values of some keys (of all, if none is given) to those
// who wait, and to nobody after them.
func (b *BatchLoad) DoNotCache(keys ...string) {
	if len(keys) == 0 {
		b.common.DoNotCache()
	}
	for _, k := range keys {
		if l := b.of(k); l != nil {
			l.DoNotCache()
		}
	}
}

// Query is Load.Query, for the batch.
func (b *BatchLoad) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return b.common.Query(ctx, sql, args...)
}

// QueryRow is Load.QueryRow, for the batch.
func (b *BatchLoad) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return b.common.QueryRow(ctx, sql, args...)
}

// of finds the load of a key. What is said of a key that is not in the batch
// was meant for another one, which would be cached without it: so none is.
func (b *BatchLoad) of(key string) *Load {
	if l := b.loads[key]; l != nil {
		return l
	}
	b.common.refuse("foreign_key")
	b.common.c.logger.Warn("a batch loader names a key that is not in its batch, nothing of it is cached", "key", key)
	return nil
}

// inherit adds to what is known of a key what counts for its whole batch.
func (l *Load) inherit(common *Load) {
	if l == common {
		return
	}
	common.mu.Lock()
	defer common.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !common.cacheable {
		l.refuseLocked(common.reason)
	}
	l.unknown = l.unknown || common.unknown
	l.primary = l.primary || common.primary
	l.standby = l.standby || common.standby
	l.composite = l.composite || common.composite
	if common.own.some {
		l.own.add(common.own.least)
	}
	if common.parts.some {
		l.parts.add(common.parts.least)
	}
	for name, b := range common.brought {
		l.bring(name, b.least)
	}
	l.said = append(l.said, common.said...)
	for _, n := range common.keys {
		if !slices.Contains(l.keys, n) {
			l.keys = append(l.keys, n)
		}
	}
}

// single is the loader of one key.
func (f batchLoader[T]) single(key string) func(context.Context, *Load) (T, error) {
	return func(ctx context.Context, l *Load) (v T, err error) {
		values, err := f(ctx, []string{key}, &BatchLoad{common: l, loads: map[string]*Load{key: l}})
		return pick(values, err, key)
	}
}

// pick is what a batch loader returned for one key.
func pick[T any](values map[string]T, err error, key string) (v T, _ error) {
	var some *BatchError
	switch {
	case errors.As(err, &some) && len(some.Keys) > 0:
		if own := some.Keys[key]; own != nil {
			return v, own
		}
	case err != nil:
		return v, err
	}
	if v, ok := values[key]; ok {
		return v, nil
	}
	return v, ErrNotFound
}

// printable is a list of keys in a log line.
func printable(keys []string) string {
	if len(keys) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(keys[:3], ", "), len(keys)-3)
	}
	return strings.Join(keys, ", ")
}
