package cdc

import (
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
