package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestLostSlotForgetsEverything: a slot that was dropped while nobody looked
// has swallowed changes. Everything is forgotten, and changes go on.
func TestLostSlotForgetsEverything(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'old'), (2, 'two')`)
	env := settingsFor(t, database, strings.Replace(itemRules, "namespace: e2e", "namespace: "+namespace, 1))
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	first := start(t, env, "run")
	first.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "old")
	c.warm("e2e:item:2", "two")
	first.stop()

	conn := connect(t, database)
	harness.Eventually(t, 20*time.Second, func() error { // the walsender outlives its client a little
		_, err := conn.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, env["LETHE_SLOT"])
		return err
	})
	execute(t, database, `UPDATE items SET name = 'new' WHERE id = 1`)
	if got, hit := c.get(itemName); !hit || got != "old" {
		t.Fatalf("before the start: %q, %v; want the old value, which nobody could have forgotten", got, hit)
	}
	second := start(t, env, "run")
	second.ready()
	c.gone(itemName)
	c.gone("e2e:item:2") // too much, never too little
	c.warm(itemName, "new")
	execute(t, database, `UPDATE items SET name = 'newer' WHERE id = 1`)
	c.gone(itemName)
	second.stop()
}

// TestRestartForgetsNothing: Lethe's own death costs no entry whose row was not
// touched, and none of the changes meanwhile.
func TestRestartForgetsNothing(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one'), (2, 'two')`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	first := start(t, env, "run")
	first.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")
	c.warm("e2e:item:2", "two")
	first.kill()

	execute(t, database, `UPDATE items SET name = 'uno' WHERE id = 1`)
	second := start(t, env, "run")
	second.ready()
	// Nothing to read again in this version, and no reason to die.
	if err := second.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.gone(itemName)
	if got, hit := c.get("e2e:item:2"); !hit || got != "two" {
		t.Errorf("an entry whose row was not touched: %q, %v after a restart, want it kept", got, hit)
	}
	second.stop()
}

// TestUndecodableKafkaMessage: what can not be decoded goes to the dead
// letters, everything it may have meant is forgotten, and the stream goes on.
func TestUndecodableKafkaMessage(t *testing.T) {
	t.Parallel()
	brokers := harness.Kafka(t).Brokers()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	env["LETHE_KAFKA_BROKERS"] = strings.Join(brokers, ",")
	env["LETHE_KAFKA_TOPIC"] = "undecodable." + databaseName(t, database)
	env["LETHE_KAFKA_GROUP"] = env["LETHE_KAFKA_TOPIC"]
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")

	writer := &kafka.Writer{
		Addr: kafka.TCP(brokers...), Topic: env["LETHE_KAFKA_TOPIC"], RequiredAcks: kafka.RequireAll,
		BatchTimeout: 10 * time.Millisecond, Transport: &kafka.Transport{},
	}
	defer func() {
		_ = writer.Close()
		writer.Transport.(*kafka.Transport).CloseIdleConnections()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := writer.WriteMessages(ctx, kafka.Message{Value: []byte("this is no record")}); err != nil {
		t.Fatal(err)
	}
	c.gone(itemName) // it may have been about any class
	harness.Eventually(t, 20*time.Second, func() error {
		_, body, err := l.get("/metrics")
		if err != nil {
			return err
		}
		if !strings.Contains(body, `lethe_dead_letters_total{reason="decode"} 1`) {
			return fmt.Errorf("no dead letter is counted")
		}
		return nil
	})
	c.warm(itemName, "one")
	execute(t, database, `UPDATE items SET name = 'uno' WHERE id = 1`)
	c.gone(itemName)
	l.stop()
}
