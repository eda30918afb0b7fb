package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
)

// layout is what the cluster says about a topic.
type layout struct {
	leaders []int // of each partition; -1 if there is none now
	brokers int
}

// errNoTopic says that the topic does not exist.
var errNoTopic = errors.New("topic does not exist")

// describe reads the layout of a topic from the transport's cache, which is
// at most metadataTTL old.
func describe(ctx context.Context, client *kafka.Client, topic string) (layout, error) {
	var l layout
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return l, fmt.Errorf("read metadata of topic %s: %w", topic, err)
	}
	l.brokers = len(meta.Brokers)
	for _, t := range meta.Topics {
		if t.Name != topic {
			continue
		}
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return l, fmt.Errorf("topic %s: %w", topic, errNoTopic)
		}
		if t.Error != nil {
			return l, fmt.Errorf("read metadata of topic %s: %w", topic, t.Error)
		}
		l.leaders = make([]int, len(t.Partitions))
		for i := range l.leaders {
			l.leaders[i] = -1
		}
		for _, p := range t.Partitions {
			if p.ID >= 0 && p.ID < len(l.leaders) && p.Leader.Host != "" {
				l.leaders[p.ID] = p.Leader.ID
			}
		}
	}
	if len(l.leaders) == 0 {
		return l, fmt.Errorf("topic %s: %w", topic, errNoTopic)
	}
	return l, nil
}

// topicConfig is how a topic of ours is made.
type topicConfig struct {
	name        string
	partitions  int
	replication int // 0: the less of 3 and the number of brokers
	retention   time.Duration
}

// replicas are the replication of a topic that is created on a cluster of so
// many brokers, and how many of them have to have what is acknowledged.
func (t topicConfig) replicas(brokers int) (replication, insync int) {
	replication, insync = t.replication, 1
	if replication == 0 {
		replication = max(1, min(ReplicationDefault, brokers))
	}
	if replication >= 3 {
		insync = 2 // a broker may be lost without losing what was acknowledged
	}
	return replication, insync
}

// ensureTopic returns the layout of the topic, which it creates if it is not
// there. It retries until ctx ends, except what no retry can cure.
func ensureTopic(ctx context.Context, client *kafka.Client, t topicConfig) (layout, error) {
	var wait backoff
	for {
		l, err := describe(ctx, client, t.name)
		if errors.Is(err, errNoTopic) {
			if err = createTopic(ctx, client, t, l.brokers); err == nil {
				l, err = describe(ctx, client, t.name)
			}
		}
		if err == nil {
			return l, nil
		}
		if permanent(err) {
			return l, err
		}
		if e := wait.sleep(ctx); e != nil {
			return l, errors.Join(e, err)
		}
	}
}

func createTopic(ctx context.Context, client *kafka.Client, t topicConfig, brokers int) error {
	replication, insync := t.replicas(brokers)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout+requestGrace)
	defer cancel()
	res, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: t.name, NumPartitions: t.partitions, ReplicationFactor: replication,
		ConfigEntries: []kafka.ConfigEntry{
			// Compaction would drop old keys of moved rows, silently.
			{ConfigName: "cleanup.policy", ConfigValue: "delete"},
			{ConfigName: "retention.ms", ConfigValue: strconv.FormatInt(t.retention.Milliseconds(), 10)},
			{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(insync)},
		},
	}}})
	if err == nil {
		err = res.Errors[t.name]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s with %d partitions and replication %d: %w", t.name, t.partitions, replication, err)
	}
	return nil
}

// permanent reports whether an error is one that a retry does not cure.
func permanent(err error) bool {
	for _, e := range []kafka.Error{
		kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed, kafka.ClusterAuthorizationFailed,
		kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.InvalidTopic, kafka.InvalidGroupId,
		kafka.InvalidReplicationFactor, kafka.InvalidPartitionNumber, kafka.PolicyViolation, kafka.InvalidRequiredAcks,
		kafka.UnsupportedVersion, kafka.InconsistentGroupProtocol, kafka.InvalidSessionTimeout,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// backoff counts attempts and waits longer after each, with jitter, so that
// many clients of a broker that comes back do not come at once. It has no
// limit on the whole: who must not wait for ever ends the context.
type backoff struct{ attempt int }

func (b *backoff) next() time.Duration {
	d := backoffMin << min(b.attempt, 10)
	b.attempt++
	d = min(d, backoffMax)
	return d/2 + rand.N(d/2)
}

func (b *backoff) reset() { b.attempt = 0 }

func (b *backoff) sleep(ctx context.Context) error {
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
