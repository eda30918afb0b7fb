package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/stream"
)

// Consumer is one member of a consumer group.
//
// Everything that belongs to one assignment of a partition (the worker, the
// fetches, the commits) runs inside one function of the group's Generation and
// has ended when that function returns. So the group waits for it before it
// joins again, and no commit can come from an assignment that is over: a late
// one would move the group backwards.
type Consumer struct {
	cfg       Config
	client    *kafka.Client
	transport *kafka.Transport
	assigned  atomic.Int64

	mu struct {
		sync.Mutex
		owned    map[*partition]struct{}
		follow   uint64        // counts the calls of Follow
		followed chan struct{} // closed by the next one
	}
}

var _ stream.Consumer = (*Consumer)(nil)

// NewConsumer checks cfg. It does not connect: Run does.
func NewConsumer(cfg Config) (*Consumer, error) {
	cfg = cfg.WithDefaults()
	err := cfg.Validate()
	if cfg.Group == "" {
		err = errors.Join(err, errors.New("kafka group: none given"))
	}
	if err != nil {
		return nil, err
	}
	client, transport, err := cfg.connect(cfg.Topic)
	if err != nil {
		return nil, err
	}
	return &Consumer{cfg: cfg, client: client, transport: transport}, nil
}

// Assigned implements stream.Consumer.
func (c *Consumer) Assigned() int { return int(c.assigned.Load()) }

// Run implements stream.Consumer. It creates the topic if it is absent, joins
// the group and stays a member, through rebalances and failures of brokers,
// until ctx ends, work returns an error while its context goes on, or the
// brokers refuse the login, the topic or the group. A group without committed
// offsets starts at the earliest record.
//
// A work function that returns nil although its context goes on gives its
// partition back; the group is joined again and hands it out anew.
func (c *Consumer) Run(ctx context.Context, work func(context.Context, stream.Partition) error) error {
	// What is in flight on the connections ends within MaxWait.
	defer c.transport.CloseIdleConnections()
	t := topicConfig{c.cfg.Topic, c.cfg.Partitions, c.cfg.Replication, c.cfg.Retention}
	if _, err := ensureTopic(ctx, c.client, t); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("open kafka consumer: %w", err)
	}
	dialer, err := c.cfg.dialer()
	if err != nil {
		return err
	}
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: c.cfg.Group, Brokers: c.cfg.Brokers, Topics: []string{c.cfg.Topic}, Dialer: dialer,
		SessionTimeout: sessionTimeout, HeartbeatInterval: heartbeatInterval, RebalanceTimeout: rebalanceTimeout,
		JoinGroupBackoff: joinGroupBackoff, StartOffset: kafka.FirstOffset,
		WatchPartitionChanges: true, PartitionWatchInterval: partitionWatchInterval,
	})
	if err != nil {
		return fmt.Errorf("open kafka consumer: %w", err)
	}
	r := &run{consumer: c, work: work}
	r.ctx, r.cancel = context.WithCancel(ctx)
	err = r.generations(group)
	r.cancel()
	// Close waits for the functions of the generation, and so for the workers.
	return errors.Join(err, group.Close(), r.failure())
}

// run is one call of Run.
type run struct {
	consumer *Consumer
	work     func(context.Context, stream.Partition) error
	ctx      context.Context // ends with Run's, or at the first failure
	cancel   context.CancelFunc

	mu  sync.Mutex
	err error
}

func (r *run) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	r.cancel()
}

func (r *run) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// generations starts the workers of one generation after the other.
func (r *run) generations(group *kafka.ConsumerGroup) error {
	log, failures := r.consumer.cfg.Logger, 0
	for {
		gen, err := group.Next(r.ctx)
		switch {
		case r.ctx.Err() != nil:
			return nil
		case err != nil && permanent(err):
			return fmt.Errorf("join kafka group %s: %w", r.consumer.cfg.Group, err)
		case err != nil:
			// The group tries again by itself. The first Next of a new cluster
			// always fails: the offsets topic is made then (error 15).
			if failures++; failures == 1 || failures%20 == 0 {
				log.Warn("kafka consumer: joining the group failed, trying again",
					"group", r.consumer.cfg.Group, "attempt", failures, "error", err)
			}
			continue
		}
		failures = 0
		mine := gen.Assignments[r.consumer.cfg.Topic]
		count := r.count(mine)
		log.Info("kafka consumer: partitions assigned", "group", r.consumer.cfg.Group, "generation", gen.ID, "partitions", len(mine), "of", count)
		for _, a := range mine {
			gen.Start(func(ended context.Context) { r.own(ended, gen, a, count) })
		}
	}
}

// count is how many partitions the topic has.
func (r *run) count(mine []kafka.PartitionAssignment) int {
	n := 0
	ctx, cancel := context.WithTimeout(r.ctx, requestGrace)
	defer cancel()
	if l, err := describe(ctx, r.consumer.client, r.consumer.cfg.Topic); err == nil {
		n = len(l.leaders)
	}
	for _, a := range mine { // the coordinator may know of more than the cache
		n = max(n, a.ID+1)
	}
	return n
}

// own runs the worker of one partition for as long as it is assigned.
func (r *run) own(ended context.Context, gen *kafka.Generation, a kafka.PartitionAssignment, count int) {
	r.consumer.assigned.Add(1)
	defer r.consumer.assigned.Add(-1)
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	defer context.AfterFunc(ended, cancel)()

	p := newPartition(r.consumer, a.ID, count)
	r.consumer.own(p)
	defer r.consumer.disown(p)
	var helpers sync.WaitGroup
	stopCommits := make(chan struct{})
	helpers.Go(func() { p.fetchLoop(ctx, a.Offset) })
	helpers.Go(func() { p.commitLoop(gen, stopCommits) })
	helpers.Go(func() { p.goalLoop(ctx, a.Offset) })
	err := r.work(ctx, p)
	over := ctx.Err() != nil
	cancel()
	close(stopCommits) // the last commit comes after the worker's last Ack
	helpers.Wait()
	if err != nil && !over {
		r.fail(fmt.Errorf("work on partition %d of topic %s: %w", a.ID, r.consumer.cfg.Topic, err))
	}
}
