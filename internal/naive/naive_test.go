package naive

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// TestOneDelForOneChange: a row whose old values the log carries too is deleted
// once where it keeps its key, or whoever waits for the first DEL is overtaken
// by the second; where it moves both names go.
func TestOneDelForOneChange(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	options, err := redis.ParseURL(harness.Redis(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`CREATE TABLE rows (id int, v int)`)
	exec(`ALTER TABLE rows REPLICA IDENTITY FULL`)
	exec(`CREATE PUBLICATION naive FOR TABLE rows`)
	deleted := make(chan string, 10)
	c := &Consumer{
		PostgresURL: database, Slot: "naive_once", Publication: "naive", Redis: client,
		Key:     func(_ string, row map[string]string) string { return harness.Namespace(t) + row["id"] },
		Deleted: func(key string) { deleted <- key[len(harness.Namespace(t)):] },
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = client.Close()
		_ = conn.Close(context.Background())
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("the consumer is not ready")
	}
	exec(`INSERT INTO rows VALUES (1, 1)`)
	exec(`UPDATE rows SET v = 2`)
	exec(`UPDATE rows SET id = 2`)
	exec(`DELETE FROM rows`)
	var got []string
	for want := []string{"1", "1", "1", "2", "2"}; len(got) < len(want); {
		select {
		case key := <-deleted:
			got = append(got, key)
			if !slices.Equal(got, want[:len(got)]) {
				t.Fatalf("deleted %v, want %v", got, want)
			}
		case err := <-done:
			t.Fatalf("the consumer ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatalf("deleted %v, want %v", got, want)
		}
	}
}
