package servers_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// ask sends one inline command to a Redis and returns the first line of the
// answer, without its type byte.
func ask(t *testing.T, addr, cmd string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(cmd + "\r\n")); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	if strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "$-1") {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimLeft(strings.TrimSpace(line), "+:")
}

func TestRedisRestartsOnItsPort(t *testing.T) {
	t.Parallel()
	r := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	addr := r.Addr()
	ask(t, addr, "SET a 1")
	r.Kill()
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Fatal("a killed server still listens")
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr, "GET a"); got != "1" {
		t.Errorf("GET after a kill = %q, want 1", got)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr, "GET a"); got != "1" {
		t.Errorf("GET after a stop = %q, want 1", got)
	}
	if err := r.Start(t.Context()); err == nil {
		t.Error("starting a running server succeeded")
	}
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	c := harness.NewRedisCluster(t, 3)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs()})
	defer client.Close()
	perMaster := map[string]int64{}
	for i := range 300 {
		if err := client.Set(t.Context(), fmt.Sprint("key", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range c.Masters {
		n, err := strconv.ParseInt(ask(t, r.Addr(), "DBSIZE"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		perMaster[r.Addr()] = n
	}
	for addr, n := range perMaster {
		if n < 50 {
			t.Errorf("%s has %d of 300 keys, want about 100 (%v)", addr, n, perMaster)
		}
	}
	if want := "redis://" + c.Masters[0].Addr() + ","; !strings.HasPrefix(c.URL(), want) {
		t.Errorf("URL() = %s, want it to begin with %s", c.URL(), want)
	}
	// A node that comes back knows its place.
	c.Masters[1].Kill()
	if err := c.Masters[1].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, func() error {
		return client.Set(t.Context(), "key1", 1, 0).Err()
	})
}

func TestRedisClusterFailsOver(t *testing.T) {
	t.Parallel()
	c := harness.NewReplicatedRedisCluster(t, 3)
	c.Masters[0].Kill()
	harness.Eventually(t, 20*time.Second, func() error {
		if got := ask(t, c.Replicas[0].Addr(), "ROLE"); got != "*5" { // replicas answer five fields, masters three
			return nil
		}
		return errors.New("the replica has not taken over")
	})
}

func TestSentinelFailsOver(t *testing.T) {
	t.Parallel()
	master := harness.NewRedis(t, servers.RedisConfig{})
	replica := harness.NewRedisReplica(t, master)
	ask(t, master.Addr(), "SET a 1")
	s := harness.NewSentinel(t, master, 3)
	if got, err := s.Master(t.Context()); err != nil || got != master.Addr() {
		t.Fatalf("Master() = %s, %v, want %s", got, err, master.Addr())
	}
	client := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: s.Name(), SentinelAddrs: s.Addrs()})
	defer client.Close()
	if got, err := client.Get(t.Context(), "a").Result(); err != nil || got != "1" {
		t.Fatalf("GET through the sentinels = %q, %v, want 1", got, err)
	}
	master.Kill()
	harness.Eventually(t, 30*time.Second, func() error {
		got, err := s.Master(t.Context())
		if err == nil && got != replica.Addr() {
			err = fmt.Errorf("Master() = %s, want %s", got, replica.Addr())
		}
		return err
	})
	harness.Eventually(t, 10*time.Second, func() error { return client.Set(t.Context(), "a", 2, 0).Err() })
}

func TestRedisOnAWantedPort(t *testing.T) {
	t.Parallel()
	r := harness.NewRedis(t, servers.RedisConfig{})
	_, text, err := net.SplitHostPort(r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := servers.StartRedis(t.Context(), servers.RedisConfig{Port: number}); err == nil {
		t.Fatal("two servers on one port")
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	// Stopped, not closed: the port is still its own.
	if _, err := servers.StartRedis(t.Context(), servers.RedisConfig{Port: number}); err == nil {
		t.Fatal("the port of a stopped server was given away")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := harness.NewRedis(t, servers.RedisConfig{Port: number}).Addr(); got != r.Addr() {
		t.Errorf("Addr() = %s, want %s", got, r.Addr())
	}
}
