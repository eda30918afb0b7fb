package e2e

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestReaderAndWorkersApart: a reader that has no Redis, and two groups of
// workers, each with a Redis of its own, from one topic.
func TestReaderAndWorkersApart(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	base := settingsFor(t, database, itemRules)
	base["LETHE_KAFKA_BROKERS"] = strings.Join(harness.Kafka(t).Brokers(), ",")
	base["LETHE_KAFKA_TOPIC"] = "apart." + databaseName(t, database)
	with := func(more map[string]string) map[string]string {
		env := maps.Clone(base)
		maps.Copy(env, more)
		return env
	}
	reader := start(t, with(map[string]string{"LETHE_REDIS_URL": "redis://127.0.0.1:1/0"}), "run", "--roles", "reader")
	var workers []*lethe
	var caches []*cache
	var envs []map[string]string
	for _, group := range []string{"near", "far"} {
		rdb := harness.NewRedis(t, servers.RedisConfig{})
		env := with(map[string]string{"LETHE_REDIS_URL": rdb.URL(), "LETHE_KAFKA_GROUP": base["LETHE_KAFKA_TOPIC"] + "." + group})
		envs = append(envs, env)
		workers = append(workers, start(t, env, "run", "--roles", "worker"))
		caches = append(caches, openCache(t, rdb.URL(), "item"))
	}
	reader.ready()
	for i, w := range workers {
		w.ready() // and goes on to apply what the reader put into the topic since
		settled(t, envs[i])
		caches[i].warm(itemName, "one")
	}
	execute(t, database, `UPDATE items SET name = 'two' WHERE id = 1`)
	for _, c := range caches {
		c.gone(itemName)
		c.warm(itemName, "two")
	}
	// Workers of one group are away: the topic keeps what they miss, and the
	// other group does not wait for them.
	workers[1].stop()
	execute(t, database, `UPDATE items SET name = 'three' WHERE id = 1`)
	caches[0].gone(itemName)
	if got, hit := caches[1].get(itemName); !hit || got != "two" {
		t.Fatalf("far: %q, %v while its workers are away", got, hit)
	}
	again := start(t, envs[1], "run", "--roles", "worker")
	again.ready()
	caches[1].gone(itemName)
	reader.stop()
	workers[0].stop()
	again.stop()
}

// TestBrokersAway: brokers that do not answer are tried again, and what hinders
// is told meanwhile.
func TestBrokersAway(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable)
	env := settingsFor(t, database, itemRules)
	env["LETHE_KAFKA_BROKERS"] = "127.0.0.1:1"
	l := start(t, env, "run")
	harness.Eventually(t, 20*time.Second, harness.True("readyz and log say that the broker is away", func() bool {
		code, body, err := l.get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, "connection refused") &&
			strings.Contains(l.output.String(), "trying again")
	}))
	l.stop()
}

// TestBrokersRefuse: who is not let in is told so, and ends.
func TestBrokersRefuse(t *testing.T) {
	t.Parallel()
	brokers := harness.RealKafka(t, servers.KafkaConfig{}).Brokers() // it knows no SASL
	database := harness.Database(t)
	execute(t, database, itemTable)
	env := settingsFor(t, database, itemRules)
	maps.Copy(env, map[string]string{
		"LETHE_KAFKA_BROKERS": strings.Join(brokers, ","), "LETHE_KAFKA_SASL_MECHANISM": "plain",
		"LETHE_KAFKA_USERNAME": "somebody", "LETHE_KAFKA_PASSWORD": "s3cr3t",
	})
	l := start(t, env, "run")
	ended{1, []string{"SASL", "LETHE_KAFKA_"}}.check(t, l)
	noSecret(t, l, "s3cr3t", "run")
}
