package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
)

// The environment of a process of TestHerdAcrossProcesses.
const (
	herdAddr = "LETHE_TEST_HERD_ADDR"
	herdNS   = "LETHE_TEST_HERD_NAMESPACE"
)

const (
	herdProcesses = 3
	herdReaders   = 1000 // of all processes together
	herdKey       = "item:1"
)

// readersOf is the share of one process.
func readersOf(process int) int {
	return (herdReaders + process) / herdProcesses
}

// herdling is one of the processes, seen from the test.
type herdling struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
}

func (h *herdling) tell(line string) {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		h.t.Fatalf("tell a process to %s: %v", line, err)
	}
}

// hear returns what follows on a word. Other lines are those of the test
// framework.
func (h *herdling) hear(word string) string {
	h.t.Helper()
	for h.out.Scan() {
		if rest, ok := strings.CutPrefix(h.out.Text(), word); ok {
			return strings.TrimSpace(rest)
		}
	}
	h.t.Fatalf("a process ended before it said %q", word)
	return ""
}

// A thousand readers in three processes, of one key that was just invalidated,
// cause one load.
func TestHerdAcrossProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	mustGet(t, e, herdKey, w.reads())
	c.fills.Wait()
	var all [herdProcesses]*herdling
	for i := range all {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHerdProcess$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), herdAddr+"="+w.addr, herdNS+"="+w.ns, fmt.Sprintf("LETHE_TEST_HERD_READERS=%d", readersOf(i)))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		w.must(err)
		out, err := cmd.StdoutPipe()
		w.must(err)
		w.must(cmd.Start())
		t.Cleanup(func() {
			_ = in.Close()
			_, _ = io.Copy(io.Discard, out)
			if err := cmd.Wait(); err != nil {
				t.Errorf("a process: %v", err)
			}
		})
		all[i] = &herdling{t: t, in: in, out: bufio.NewScanner(out)}
	}
	for _, h := range all {
		h.hear("has it")
	}
	w.write(herdKey, 110)
	for _, h := range all {
		h.tell("read")
	}
	for _, h := range all {
		h.hear("waits")
	}
	for _, h := range all {
		h.tell("load")
	}
	loads, right := 0, 0
	for _, h := range all {
		var l, r int
		if _, err := fmt.Sscan(h.hear("done"), &l, &r); err != nil {
			t.Fatal(err)
		}
		loads, right = loads+l, right+r
	}
	w.want("loads", loads, 1)
	w.want("readers with the value of after the write", right, herdReaders)
}

// TestHerdProcess is one process of TestHerdAcrossProcesses.
func TestHerdProcess(t *testing.T) {
	if os.Getenv(herdAddr) == "" {
		t.Skip("it is started by TestHerdAcrossProcesses")
	}
	var readers int
	if _, err := fmt.Sscan(os.Getenv("LETHE_TEST_HERD_READERS"), &readers); err != nil {
		t.Fatal(err)
	}
	orders := bufio.NewScanner(os.Stdin)
	obey := func(order string) {
		if !orders.Scan() || orders.Text() != order {
			t.Errorf("told to %q, want %q", orders.Text(), order)
		}
	}
	rdb := redis.NewClient(&redis.Options{Addr: os.Getenv(herdAddr)})
	defer rdb.Close()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: os.Getenv(herdNS), RedisTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := Entries[int64](c, "item")
	slowLoads(e)
	release := make(chan struct{})
	var loads, right atomic.Int64
	load := func(context.Context, *Load) (int64, error) {
		loads.Add(1)
		<-release
		return 2, nil
	}
	// It has the value of before in L1, as a process that is at work.
	harness.Eventually(t, 30*time.Second, harness.True("the value is in L1", func() bool {
		v, err := e.Get(t.Context(), herdKey, func(context.Context, *Load) (int64, error) { return 1, nil })
		return v == 1 && err == nil && inL1(e, herdKey)
	}))
	fmt.Println("has it")
	obey("read")
	harness.Eventually(t, 30*time.Second, harness.True("the write was heard of", func() bool { return !inL1(e, herdKey) }))
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			if v, err := e.Get(t.Context(), herdKey, load); err == nil && v == 2 {
				right.Add(1)
			}
		})
	}
	harness.Eventually(t, 60*time.Second, func() error {
		s := c.Stats().Classes["item"]
		if int(s.Coalesced) != readers-1 || int(loads.Load())+s.LeaseWaiting == 0 {
			return fmt.Errorf("%d of %d wait for one load, loads %d, lease waits %d", s.Coalesced+1, readers, loads.Load(), s.LeaseWaiting)
		}
		return nil
	})
	fmt.Println("waits")
	obey("load")
	close(release)
	wg.Wait()
	fmt.Println("done", loads.Load(), right.Load())
}
