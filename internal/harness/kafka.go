package harness

import (
	"fmt"
	"testing"

	"github.com/lethe-cache/lethe/internal/servers"
)

// Kafka is what the tests of this process share: one real broker where Java and
// its jars are there, else kfake. Each test uses topics and groups of its own
// (Topic).
func Kafka(t testing.TB) *servers.Kafka {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.kafka == nil {
		ctx, cancel := startContext(t)
		defer cancel()
		k, err := servers.StartKafka(ctx, servers.KafkaConfig{})
		started(t, err)
		shared.kafka = k
	}
	return shared.kafka
}

// NewKafka starts a Kafka for this test alone.
func NewKafka(t testing.TB, cfg servers.KafkaConfig) *servers.Kafka {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	k, err := servers.StartKafka(ctx, cfg)
	started(t, err)
	closed(t, k)
	return k
}

// RealKafka is NewKafka for what only real brokers do; the test is left out
// where there are none.
func RealKafka(t testing.TB, cfg servers.KafkaConfig) *servers.Kafka {
	t.Helper()
	k := NewKafka(t, cfg)
	if !k.Real() {
		t.Skip("left out: needs real Kafka brokers (java and mvn)")
	}
	return k
}

// Topic is a name for a topic or a group that no other test uses.
func Topic(t testing.TB) string {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.topic++
	return fmt.Sprintf("%s-%d", Namespace(t), shared.topic)
}
