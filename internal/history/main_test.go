package history

import (
	"context"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
)

// quiet is a logger for what go-redis says about servers that are away.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{})
	if text := os.Getenv(planVariable); text != "" {
		agentMain(text)
	}
	harness.Main(m)
}
