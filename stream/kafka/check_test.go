package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/lethe-cache/lethe/stream/kafka"
)

func find(t *testing.T, findings []kafka.Finding, name string) kafka.Finding {
	t.Helper()
	for _, f := range findings {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q in %+v", name, findings)
	return kafka.Finding{}
}

// The topic that is created has the settings that the checks ask for.
func TestCreatedTopicIsSane(t *testing.T) {
	t.Parallel()
	c := fake(t, kfake.NumBrokers(3))
	cfg := settings(t, c.ListenAddrs())
	cfg.Partitions = 0
	if f := find(t, kafka.Check(t.Context(), cfg), "topic"); f.Severity != kafka.Warning || !strings.Contains(f.Fix, "--partitions 12 --replication-factor 3") {
		t.Errorf("before: %+v", f)
	}
	w := writer(t, cfg)
	closeWriter(t, w)
	info := c.TopicInfo(cfg.Topic)
	if got := len(c.PartitionInfos(cfg.Topic)); got != 12 || info.NumReplicas != 3 {
		t.Errorf("%d partitions with %d replicas, want 12 with 3", got, info.NumReplicas)
	}
	for name, want := range map[string]string{"cleanup.policy": "delete", "retention.ms": "604800000", "min.insync.replicas": "2"} {
		if got := info.Configs[name]; got == nil || *got != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
	for _, f := range kafka.Check(t.Context(), cfg) {
		if f.Severity != kafka.OK {
			t.Errorf("after: %+v", f)
		}
	}
}

func TestCheckFinds(t *testing.T) {
	t.Parallel()
	c := fake(t, kfake.NumBrokers(3))
	cfg := settings(t, c.ListenAddrs())
	err := c.CreateTopic(cfg.Topic, 1, map[string]string{
		"cleanup.policy": "compact", "retention.ms": "3600000", "min.insync.replicas": "1", "max.message.bytes": "1000"})
	if err != nil {
		t.Fatal(err)
	}
	got := kafka.Check(t.Context(), cfg)
	for name, severity := range map[string]string{
		"cleanup.policy": kafka.Error, "retention": kafka.Warning, "min.insync.replicas": kafka.Warning, "message size": kafka.Warning, "topic": kafka.OK,
	} {
		f := find(t, got, name)
		if f.Severity != severity || severity != kafka.OK && f.Fix == "" {
			t.Errorf("%s: %+v, want severity %s and a fix", name, f, severity)
		}
	}
	cfg.Brokers = []string{"127.0.0.1:1"}
	if f := find(t, kafka.Check(t.Context(), cfg), "brokers"); f.Severity != kafka.Error {
		t.Errorf("no broker: %+v", f)
	}
	cfg.Brokers = nil
	if f := find(t, kafka.Check(t.Context(), cfg), "settings"); f.Severity != kafka.Error {
		t.Errorf("no settings: %+v", f)
	}
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	cfg := settings(t, []string{"127.0.0.1:1"})
	ctx, cancel := contextFor(t, 300*time.Millisecond)
	defer cancel()
	if _, err := kafka.NewWriter(ctx, cfg); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("NewWriter: %v, want the end of its context", err)
	}
	ctx2, cancel2 := contextFor(t, 300*time.Millisecond)
	defer cancel2()
	if err := consumer(t, cfg).Run(ctx2, nil); err != nil {
		t.Errorf("Run: %v, want nil: its context has ended", err)
	}
}
