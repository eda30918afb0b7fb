package client_test

import (
	"context"
	"fmt"
	"sync"

	"github.com/lethe-cache/lethe/client/clienttest"
)

// The examples that print run on clienttest, and on this table of products.
type table struct {
	mu    sync.Mutex
	rows  map[string]Product
	reads int
}

func newTable() *table {
	return &table{rows: map[string]Product{
		"product:1": {ID: 1, Category: "lamps", Name: "Lamp"},
		"product:2": {ID: 2, Category: "lamps", Name: "Lantern"},
		"product:3": {ID: 3, Category: "chairs", Name: "Chair"},
	}}
}

func (t *table) read(key string) (Product, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	p, ok := t.rows[key]
	return p, ok
}

func (t *table) write(key string, p Product) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[key] = p
}

func (t *table) name(key, name string) {
	p, _ := t.read(key)
	p.Name = name
	t.write(key, p)
}

// readTimes is how often it was read since the last call.
func (t *table) readTimes() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.reads
	t.reads = 0
	return n
}

// exampleT is what clienttest wants of a test, where there is none.
type exampleT struct{ ends []func() }

func newCache() (ct *clienttest.Cache, end func()) {
	t := &exampleT{}
	return clienttest.New(t), func() {
		for i := len(t.ends) - 1; i >= 0; i-- {
			t.ends[i]()
		}
	}
}

func (t *exampleT) Cleanup(f func())                  { t.ends = append(t.ends, f) }
func (t *exampleT) Context() context.Context          { return context.Background() }
func (t *exampleT) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *exampleT) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *exampleT) Helper()                           {}
