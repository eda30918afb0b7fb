package client

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestKeysThatMayNotBeUsed: they are refused with the reason, and before
// anything is asked.
func TestKeysThatMayNotBeUsed(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"":                              "empty",
		"item:\x00":                     `byte 5 is the control character '\x00'`,
		"item:a\nb":                     "urlencode",
		"item:\x7f":                     "control character",
		"item:\xff":                     "UTF-8",
		strings.Repeat("x", KeyMax+1):   "4097 bytes",
		strings.Repeat("x", KeyMax):     "",
		"item:é\ufffd:2026-01-01 00:00": "", // as a timestamp is rendered
	} {
		err := checkKey(key)
		switch {
		case want == "" && err != nil:
			t.Errorf("%.20q: %v, want no error", key, err)
		case want != "" && (!errors.Is(err, ErrKey) || !strings.Contains(err.Error(), want)):
			t.Errorf("%.20q: %v, want ErrKey with %q", key, err, want)
		}
	}
}

// TestKeyPattern: whatever takes a name refuses one against the pattern, and
// asks nobody.
func TestKeyPattern(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{KeyPattern: regexp.MustCompile(`^(item|tag):[0-9a-z]+$|^all$`)}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	c.data.(*redis.Client).AddHook(failing{errors.New("it was asked")})
	w.loads.Store(0)
	refused := func(what string, f func() error) {
		err := f()
		if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "KeyPattern") || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrKey", what, err)
		}
	}
	for what, f := range map[string]func() error{
		"Get":            func() error { _, err := e.Get(t.Context(), "item:A"); return err },
		"Refresh":        func() error { _, err := e.Refresh(t.Context(), "item:A"); return err },
		"Invalidate":     func() error { return c.Invalidate(t.Context(), "item:1", "item:A") },
		"InvalidateTags": func() error { return c.InvalidateTags(t.Context(), Any("tag:A")) },
	} {
		refused(what, f)
	}
	w.wantLoads(0)
	w.want("errors of redis", c.Stats().RedisErrors, uint64(0))
	for what, f := range map[string]func() error{
		"Tag": func() error {
			_, err := e.Get(t.Context(), "item:2", func(_ context.Context, l *Load) (int64, error) { l.Tag("tag:a", "tag:A"); return 1, nil })
			return err
		},
		"DependsOn": func() error {
			_, err := e.Get(t.Context(), "item:3", func(_ context.Context, l *Load) (int64, error) { l.DependsOn("item:A"); return 1, ErrNotFound })
			return err
		},
	} {
		refused(what, f)
	}
	if n := c.Stats().Classes["item"].ReadErrors["key"]; n != 3 {
		t.Errorf("reads that failed for their names: got %d, want 3", n)
	}
}

// TestKeysWithoutTheirClass are warned of, once for a class, and not where
// KeyTemplate says what keys look like.
func TestKeysWithoutTheirClass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var b syncBuffer
	c := w.open(Options{Logger: slog.New(slog.NewTextHandler(&b, nil))}, hooks{})
	e := w.items(c)
	other := Entries[int64](c, "other", KeyTemplate("o:{id}"), LoadWith(w.loader()))
	w.live(c)
	w.get(t.Context(), e, "item:1")
	w.get(t.Context(), other, "o:1")
	if strings.Contains(b.String(), "does not begin with its class") {
		t.Errorf("warned of what is right:\n%s", b.String())
	}
	w.get(t.Context(), e, "items:1")
	w.get(t.Context(), e, "items:2")
	if got := strings.Count(b.String(), "does not begin with its class"); got != 1 || !strings.Contains(b.String(), `begin keys with \"item:\"`) {
		t.Errorf("warned %d times, want once with the fix:\n%s", got, b.String())
	}
}
