package keyscan_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/keyscan"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestMain(m *testing.M) { harness.Main(m) }

func sample(names ...string) *keyscan.Sample {
	s := &keyscan.Sample{Complete: true}
	for _, n := range names {
		s.Keys = append(s.Keys, keyscan.Key{Name: n, Type: "string", Bytes: 100, TTL: -1, Idle: -1, Weight: 1})
	}
	return s
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	names := []string{
		"user:1", "user:22", "user:me", "user:1:profile", "session:0b4cb4d6-0d6f-4c0e-9c1c-0f8e0d6f4c0e", "report:2026-11-21", "etag:0123456789abcdef",
		"config", "a::1",
	}
	for i := range 50 {
		names = append(names, fmt.Sprintf("page:slug%c%c", 'g'+i%17, 'g'+i/17))
	}
	var got []string
	for _, p := range keyscan.Patterns(sample(names...)) {
		got = append(got, fmt.Sprintf("%s %d %v", p, p.Keys, p.Collides))
	}
	want := []string{"page:{text} 50 []", "user:{number} 2 []", "a::{number} 1 []", "config 1 []", "etag:{hex} 1 []", "report:{date} 1 []",
		"session:{uuid} 1 []", "user:me 1 []", "user:{number}:profile 1 []"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestPatternsThatCollide(t *testing.T) {
	t.Parallel()
	names := []string{"user:1", "order:2", "user:1:x"}
	for i := range 30 {
		names = append(names, fmt.Sprintf("user:name%c", 'A'+i))
	}
	for _, p := range keyscan.Patterns(sample(names...)) {
		want := map[string]string{"user:{number}": "user:{text}", "user:{text}": "user:{number}"}[p.String()]
		if got := strings.Join(p.Collides, " "); got != want {
			t.Errorf("%s collides with %q, want %q", p, got, want)
		}
	}
}

func TestServerScan(t *testing.T) {
	t.Parallel()
	r := harness.NewRedis(t, servers.RedisConfig{})
	rdb := redis.NewClient(&redis.Options{Addr: r.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	ctx := t.Context()
	for i := range 3000 {
		rdb.Set(ctx, fmt.Sprintf("user:%d", i), "x", time.Hour)
	}
	rdb.Set(ctx, "big:1", strings.Repeat("x", 200<<10), 0)
	rdb.HSet(ctx, "cart:1", "a", 1)
	rdb.Set(ctx, "lethe:own", 1, 0)
	skip := func(k string) bool { return strings.HasPrefix(k, "lethe:") }

	s, err := keyscan.Scan(ctx, rdb, keyscan.Options{Skip: skip})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Complete || len(s.Keys) != 3002 || s.Total != 3003 {
		t.Fatalf("complete %v, %d keys of %d", s.Complete, len(s.Keys), s.Total)
	}
	by := map[string]*keyscan.Pattern{}
	for _, p := range keyscan.Patterns(s) {
		by[p.String()] = p
	}
	if u := by["user:{number}"]; u == nil || u.Keys != 3000 || u.NoTTL != 0 || u.TTLMax > time.Hour || u.TTLMin <= 0 || u.Large != 0 || u.IdleMedian < 0 {
		t.Errorf("users %+v", u)
	}
	if b := by["big:{number}"]; b == nil || b.Large != 1 || b.NoTTL != 1 || b.Largest != "big:1" || b.TTLMax != 0 {
		t.Errorf("big %+v", b)
	}
	if c := by["cart:{number}"]; c == nil || !slices.Equal(c.Types, []string{"hash"}) {
		t.Errorf("cart %+v", c)
	}

	t.Run("bounded", func(t *testing.T) {
		s, err := keyscan.Scan(ctx, rdb, keyscan.Options{Keys: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if s.Complete || len(s.Keys) != 1000 {
			t.Errorf("complete %v, %d keys, want 1000", s.Complete, len(s.Keys))
		}
		if users := keyscan.Patterns(s)[0].Keys; users < 2900 || users > 3003 {
			t.Errorf("%d users by estimate, want about 3000", users)
		}
	})
	t.Run("lfu", func(t *testing.T) {
		if err := rdb.ConfigSet(ctx, "maxmemory-policy", "allkeys-lfu").Err(); err != nil {
			t.Fatal(err)
		}
		s, err := keyscan.Scan(ctx, rdb, keyscan.Options{Keys: 10})
		if err != nil {
			t.Fatal(err)
		}
		if k := s.Keys[0]; k.Idle != -1 || k.Frequency < 0 {
			t.Errorf("under an LFU policy: idle %v, frequency %d", k.Idle, k.Frequency)
		}
	})
}

func TestServerScanCluster(t *testing.T) {
	t.Parallel()
	c := harness.NewRedisCluster(t, 3)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs()})
	t.Cleanup(func() { _ = rdb.Close() })
	ctx := context.WithoutCancel(t.Context())
	for i := range 300 {
		if err := rdb.Set(ctx, fmt.Sprintf("user:%d", i), "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	s, err := keyscan.Scan(ctx, rdb, keyscan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p := keyscan.Patterns(s); len(p) != 1 || p[0].Keys != 300 || p[0].NoTTL != 300 {
		t.Errorf("patterns %+v, want 300 users of three masters", p)
	}
}
