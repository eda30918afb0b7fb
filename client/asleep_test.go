package client

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	asleepAddr = "LETHE_TEST_ASLEEP_ADDR"
	asleepNS   = "LETHE_TEST_ASLEEP_NS"
)

// A process is stopped for longer than the life of L1, and a write is
// invalidated meanwhile. Its first read does not serve the old value from L1.
func TestStoppedProcessDoesNotServeL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAsleepProcess$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), asleepAddr+"="+w.addr, asleepNS+"="+w.ns)
	in, err := cmd.StdinPipe()
	w.must(err)
	out, err := cmd.StdoutPipe()
	w.must(err)
	cmd.Stderr = os.Stderr
	w.must(cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	ask := func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the process ended: %v", lines.Err())
		}
		return lines.Text()
	}
	w.want("before", ask(), "1 from L1")
	w.must(cmd.Process.Signal(syscall.SIGSTOP))
	w.invalidate("item:1", 110)
	<-time.After(l1Life + 100*time.Millisecond)
	// The question is there before anything that was broadcast is read.
	_, err = io.WriteString(in, "read\n")
	w.must(err)
	w.must(cmd.Process.Signal(syscall.SIGCONT))
	w.want("after", ask(), "2")
}

// TestAsleepProcess is the process.
func TestAsleepProcess(t *testing.T) {
	if os.Getenv(asleepAddr) == "" {
		t.Skip("it is run by TestStoppedProcessDoesNotServeL1")
	}
	rdb := redis.NewClient(&redis.Options{Addr: os.Getenv(asleepAddr)})
	defer rdb.Close()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: os.Getenv(asleepNS), RedisTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := &world{t: t}
	w.row.Store(1)
	e := Entries[int64](c, "item", LoadWith(w.loader()))
	for !inL1(e, "item:1") {
		if c.State() == Live {
			w.get(t.Context(), e, "item:1")
		}
	}
	w.row.Store(2)
	fmt.Println(w.get(t.Context(), e, "item:1"), "from L1")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	// In a loop of its own the receiver has not run yet.
	v, err := e.Get(t.Context(), "item:1")
	fmt.Println(v)
	if err != nil {
		t.Error(err)
	}
}
