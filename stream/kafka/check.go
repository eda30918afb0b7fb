package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// Finding is one thing that Check looked at.
type Finding struct {
	// Name of the check: brokers, topic, replication, min.insync.replicas,
	// cleanup.policy, retention, message size.
	Name string
	// Severity is ok, warning or error. With an error Lethe does not run, or
	// may lose changes without noticing.
	Severity string
	// Message says what was found, Fix what to do about it, ready to paste.
	Message, Fix string
}

// The severities of a Finding.
const (
	OK      = "ok"
	Warning = "warning"
	Error   = "error"
)

// leastRetention is what lets a worker be down over a weekend.
const leastRetention = 72 * time.Hour

// Check looks at the cluster and the topic as they are and changes nothing. It
// returns what it found; an unreachable cluster is a finding.
func Check(ctx context.Context, cfg Config) []Finding {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return []Finding{{"settings", Error, err.Error(), "correct the LETHE_KAFKA_* settings"}}
	}
	client, transport, err := cfg.connect(cfg.Topic)
	if err != nil {
		return []Finding{{"settings", Error, err.Error(), "correct the LETHE_KAFKA_* settings"}}
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{cfg.Topic}})
	if err != nil {
		return []Finding{{"brokers", Error, fmt.Sprintf("no broker of %v answers: %v", cfg.Brokers, err),
			"check LETHE_KAFKA_BROKERS, and the SASL and TLS settings"}}
	}
	out := []Finding{{"brokers", OK, fmt.Sprintf("%d brokers", len(meta.Brokers)), ""}}
	topic := kafka.Topic{Error: kafka.UnknownTopicOrPartition}
	for _, t := range meta.Topics {
		if t.Name == cfg.Topic {
			topic = t
		}
	}
	if errors.Is(topic.Error, kafka.UnknownTopicOrPartition) {
		replication, insync := topicConfig{replication: cfg.Replication}.replicas(len(meta.Brokers))
		return append(out, Finding{"topic", Warning, fmt.Sprintf("topic %s does not exist yet", cfg.Topic),
			fmt.Sprintf("lethe run creates it if it may; else: kafka-topics.sh --create --topic %s --partitions %d --replication-factor %d --config cleanup.policy=delete --config min.insync.replicas=%d",
				cfg.Topic, cfg.Partitions, replication, insync)})
	} else if topic.Error != nil {
		return append(out, Finding{"topic", Error, fmt.Sprintf("topic %s: %v", cfg.Topic, topic.Error), "give the user the rights to describe, read and write the topic"})
	}
	out = append(out, Finding{"topic", OK, fmt.Sprintf("topic %s has %d partitions", cfg.Topic, len(topic.Partitions)), ""})
	replicas := 0
	for i, p := range topic.Partitions {
		if i == 0 || len(p.Replicas) < replicas {
			replicas = len(p.Replicas)
		}
	}
	out = append(out, checkReplication(replicas, len(meta.Brokers)))
	return append(out, checkConfig(ctx, client, cfg, replicas)...)
}

func checkReplication(replicas, brokers int) Finding {
	switch {
	case replicas >= 3, brokers < 2:
		return Finding{"replication", OK, fmt.Sprintf("%d replicas on %d brokers", replicas, brokers), ""}
	default:
		return Finding{"replication", Warning, fmt.Sprintf("%d replicas on %d brokers: a lost broker can lose acknowledged changes", replicas, brokers),
			"raise the replication with kafka-reassign-partitions.sh"}
	}
}

func checkConfig(ctx context.Context, client *kafka.Client, cfg Config, replicas int) []Finding {
	res, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: cfg.Topic,
		ConfigNames: []string{"cleanup.policy", "retention.ms", "min.insync.replicas", "max.message.bytes"},
	}}})
	if err == nil && len(res.Resources) == 1 {
		err = res.Resources[0].Error
	}
	if err != nil || len(res.Resources) != 1 {
		return []Finding{{"topic settings", Warning, fmt.Sprintf("the settings of topic %s can not be read: %v", cfg.Topic, err), "give the user the right to describe the topic's configs"}}
	}
	values := make(map[string]string)
	for _, e := range res.Resources[0].ConfigEntries {
		values[e.ConfigName] = e.ConfigValue
	}
	alter := func(name, value string) string {
		return fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", cfg.Topic, name, value)
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(values[name], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	var out []Finding
	if v := values["cleanup.policy"]; v != "delete" {
		out = append(out, Finding{"cleanup.policy", Error, fmt.Sprintf("cleanup.policy=%s: compaction drops changes, and with them old keys", v), alter("cleanup.policy", "delete")})
	} else {
		out = append(out, Finding{"cleanup.policy", OK, "delete", ""})
	}
	insync := number("min.insync.replicas")
	switch {
	case replicas >= 3 && insync < 2:
		out = append(out, Finding{"min.insync.replicas", Warning, fmt.Sprintf("min.insync.replicas=%d: acks=all is satisfied by one broker", insync), alter("min.insync.replicas", "2")})
	case int(insync) > replicas:
		out = append(out, Finding{"min.insync.replicas", Error, fmt.Sprintf("min.insync.replicas=%d with %d replicas: no write with acks=all succeeds", insync, replicas), alter("min.insync.replicas", strconv.Itoa(max(1, replicas-1)))})
	default:
		out = append(out, Finding{"min.insync.replicas", OK, strconv.FormatInt(insync, 10), ""})
	}
	// -1 is for ever. What a worker could not read before it was cut is repaired
	// by raising classes, which empties the cache: correct, and expensive.
	if ms := number("retention.ms"); ms >= 0 && ms < leastRetention.Milliseconds() {
		out = append(out, Finding{"retention", Warning, fmt.Sprintf("retention.ms=%d: workers that are down longer than %s start with an empty cache", ms, time.Duration(ms)*time.Millisecond),
			alter("retention.ms", strconv.FormatInt(RetentionDefault.Milliseconds(), 10))})
	} else {
		out = append(out, Finding{"retention", OK, values["retention.ms"] + " ms", ""})
	}
	const overhead = 256 // of a batch with one record
	if n := number("max.message.bytes"); n >= 0 && n < int64(cfg.MaxRecordBytes+overhead) {
		out = append(out, Finding{"message size", Warning, fmt.Sprintf("max.message.bytes=%d is less than a full record of %d: records are split, larger rows become dead letters", n, cfg.MaxRecordBytes),
			alter("max.message.bytes", "1048588")})
	} else {
		out = append(out, Finding{"message size", OK, values["max.message.bytes"] + " bytes", ""})
	}
	return out
}
