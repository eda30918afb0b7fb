package servers

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// kafkaVersion is the one in kafka.xml.
const kafkaVersion = "4.3.0"

//go:embed kafka.xml
var kafkaPOM []byte

// fetchKafka has Maven copy Kafka's jars into dir. Maven checks them against the
// repository's digests (--strict-checksums). Without a network it still works
// from Maven's own cache.
func fetchKafka(ctx context.Context, dir string) error {
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("look for mvn on PATH: %w", err)
	}
	work, err := os.MkdirTemp("", "lethe-kafka-pom-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	pom := filepath.Join(work, "pom.xml")
	if err := os.WriteFile(pom, kafkaPOM, 0o644); err != nil {
		return err
	}
	args := []string{"-q", "-B", "--strict-checksums", "-f", pom, "dependency:copy-dependencies", "-DoutputDirectory=" + dir}
	_, err = run(ctx, nil, work, mvn, args...)
	if err != nil && ctx.Err() == nil {
		if _, offline := run(ctx, nil, work, mvn, append([]string{"-o"}, args...)...); offline == nil {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if jars, _ := filepath.Glob(filepath.Join(dir, "kafka_2.13-*.jar")); len(jars) == 0 {
		return errors.New("maven copied no kafka_2.13 jar")
	}
	return nil
}
