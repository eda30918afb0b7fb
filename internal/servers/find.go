package servers

import (
	"context"
	"fmt"
)

// FindPostgres says in one line which Postgres a version stands for (see
// PostgresConfig.Version), and downloads it if it must. It starts nothing. The
// error wraps ErrNotInstalled if there is none.
func FindPostgres(ctx context.Context, version string) (string, error) {
	install, err := findPostgres(ctx, version)
	if err != nil {
		return "", err
	}
	return install.String(), nil
}

// FindRedis says in one line which Redis StartRedis would start.
func FindRedis() (string, error) {
	program, err := redisProgram()
	if err != nil {
		return "", err
	}
	return (&Redis{program: program}).String(), nil
}

// FindKafka says in one line which real Kafka StartKafka would start, and has
// Maven fetch it if it must.
func FindKafka(ctx context.Context) (string, error) {
	_, libs, err := kafkaJars(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Kafka %s (%s)", kafkaVersion, libs), nil
}
