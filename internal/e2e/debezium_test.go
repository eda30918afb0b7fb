package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestDebeziumTopic: workers alone, on a topic that Debezium writes.
func TestDebeziumTopic(t *testing.T) {
	t.Parallel()
	brokers := harness.Kafka(t).Brokers()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	env["LETHE_KAFKA_BROKERS"] = strings.Join(brokers, ",")
	topic := "debezium." + databaseName(t, database)
	env["LETHE_KAFKA_TOPIC"], env["LETHE_KAFKA_GROUP"] = topic, topic

	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(brokers...), Transport: transport}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	_, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, env, "run", "--roles", "worker")
	conn := connect(t, database)
	update := func(name string) {
		t.Helper()
		xid := queryText(t, conn, `WITH u AS (UPDATE items SET name = $1 WHERE id = 1 RETURNING 1) SELECT pg_current_xact_id()::text FROM u`, name)
		value := fmt.Sprintf(`{"before": null, "after": {"id": 1, "name": %q}, "op": "u", "ts_ms": 1,
			"source": {"schema": "public", "table": "items", "txId": %s, "lsn": 1, "ts_ms": 1}}`, name, xid)
		writer := &kafka.Writer{Addr: kafka.TCP(brokers...), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: 5 * time.Millisecond, Transport: transport}
		defer writer.Close()
		if err := writer.WriteMessages(ctx, kafka.Message{Key: []byte(`{"id": 1}`), Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
	}
	c := openCache(t, rdb.URL(), "item")
	update("uno") // the first record brings the source, and what that makes due
	harness.Eventually(t, 30*time.Second, func() error {
		control, err := c.store.Control(ctx, "item")
		if err == nil && control.Source.Era == 0 {
			err = fmt.Errorf("no source is recorded")
		}
		return err
	})
	l.ready()
	// What came after the source: an update that is still being applied refuses
	// the fill.
	harness.Eventually(t, 30*time.Second, harness.True("the first update is applied", func() bool {
		return l.metric("lethe_invalidations_total", `rule="item"`) >= 1
	}))
	c.warm(itemName, "uno")
	update("dos")
	c.gone(itemName)
	c.warm(itemName, "dos")
	l.stop()
}
