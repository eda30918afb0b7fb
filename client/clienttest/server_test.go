package clienttest

import (
	"errors"
	"sync"
	"testing"
)

// Pools of connections dial in goroutines that nobody waits for: whoever comes
// while the server is closed, or later, is turned away and starts nothing.
func TestServerIsClosedForWhoeverStillDials(t *testing.T) {
	t.Parallel()
	for range 20 {
		s := newServer()
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(func() {
				for {
					c, err := s.connect()
					if err != nil {
						return
					}
					_ = c.Close()
				}
			})
		}
		s.close()
		wait.Wait()
		if _, err := s.connect(); !errors.Is(err, errDown) {
			t.Fatalf("connect to a closed server: %v, want errDown", err)
		}
	}
}
