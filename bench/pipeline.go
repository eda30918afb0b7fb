package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// pipelineMetrics are those that need the binary.
var pipelineMetrics = []string{
	"direct_vs_plain_unlink", "direct_vs_plain_unlink_same_stream", "direct_vs_plain_del", "kafka_vs_direct",
	"commit_to_redis_vs_del_p50", "commit_to_redis_vs_del_p99", "commit_to_redis_p50_ms", "commit_to_redis_p99_ms",
}

// direct is `lethe run` without brokers.
func (e *env) direct() subject {
	return subject{name: "lethe direct", start: func(ctx context.Context, slot string) (*running, error) {
		run, err := e.lethe.start(ctx, slot, nil)
		if err != nil {
			return nil, err
		}
		return &run.running, nil
	}}
}

// throughKafka is `lethe run` with brokers.
func (e *env) throughKafka() subject {
	return subject{name: "lethe kafka", start: func(ctx context.Context, slot string) (*running, error) {
		run, err := e.lethe.start(ctx, slot, e.kafka.Brokers())
		if err != nil {
			return nil, err
		}
		return &run.running, nil
	}}
}

// plainUnlink is the consumer by hand that sends pipelines of UNLINK.
func (e *env) plainUnlink(publication string) subject {
	c := consumer{postgresURL: e.db.server.URL("postgres"), publication: publication, redis: e.cache.rdb, pipeline: 1000}
	return subject{name: "consumer by hand, UNLINK", start: c.start}
}

// plainDel is the consumer by hand that sends a DEL for each change.
func (e *env) plainDel(limit time.Duration) subject {
	c := consumer{postgresURL: e.db.server.URL("postgres"), publication: publication, redis: e.cache.rdb}
	return subject{name: "consumer by hand, DEL", start: c.start, limit: limit}
}

// prepareLethe starts lethe once, so that its schema and its publication are in
// the database before the workloads: a walsender judges a change by the
// publications as they were when the change was made.
func (e *env) prepareLethe(ctx context.Context) (err error) {
	if e.lethe == nil {
		return nil
	}
	const slot = "bench_prepare"
	defer func() {
		if err != nil {
			e.lethe, e.letheErr = nil, fmt.Errorf("first start of lethe: %w", err)
		}
	}()
	run, err := e.lethe.start(ctx, slot, nil)
	if err != nil {
		return err
	}
	err = run.waitReady(ctx)
	if stopped := run.stop(); err == nil {
		err = stopped
	}
	if dropped := e.db.dropSlot(context.WithoutCancel(ctx), slot); err == nil {
		err = dropped
	}
	return err
}

// entrant is one subject of the pipeline's rounds.
type entrant struct {
	metric  string // "" for lethe in direct mode, the partner of all
	subject subject
	// over says that direct is the baseline, not the subject.
	over bool
}

// measurePipeline drains one workload by every subject in turn, round by round;
// within a round lethe's one drain is the partner of each baseline's.
func (e *env) measurePipeline(ctx context.Context, w *workload) error {
	if !e.metrics.wants(pipelineMetrics[:4]...) {
		return nil
	}
	if e.lethe == nil {
		return e.letheErr
	}
	entrants := []entrant{{subject: e.direct()}}
	add := func(metric string, s subject, over bool) {
		if e.metrics.wants(metric) {
			entrants = append(entrants, entrant{metric, s, over})
		}
	}
	add("direct_vs_plain_unlink", e.plainUnlink(publication), false)
	add("direct_vs_plain_unlink_same_stream", e.plainUnlink(e.lethe.publication), false)
	add("direct_vs_plain_del", e.plainDel(e.sizes.DelLimit), false)
	if e.kafka != nil && slices.Contains(e.sizes.KafkaWorkloads, w.name) {
		add("kafka_vs_direct", e.throughKafka(), true)
	}
	pairs, failed := map[string][]Pair{}, map[string]error{}
	defer func() {
		for metric, p := range pairs {
			e.metrics.pairs(metric, w.name, p)
		}
		for metric, err := range failed {
			e.metrics.unmeasured(metric, w.name, err)
		}
	}()
	for start, round := time.Now(), 0; e.more(round, e.sizes.Rounds, start, 0.14); round++ {
		rates := map[string]float64{}
		order := slices.Clone(entrants)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, next := range order {
			rate, err := e.drain(ctx, w, next.subject)
			if err != nil {
				if next.metric == "" || ctx.Err() != nil {
					return err
				}
				// The others go on without this one.
				e.log.Warn("not measured", "what", next.metric, "workload", w.name, "err", err)
				failed[next.metric] = err
				entrants = slices.DeleteFunc(entrants, func(x entrant) bool { return x.metric == next.metric })
				continue
			}
			e.log.Info("drained", "workload", w.name, "round", round+1, "by", next.subject.name, "metric", next.metric, "rows_per_second", int(rate))
			rates[next.metric] = rate
		}
		for _, x := range entrants {
			rate, ok := rates[x.metric]
			switch {
			case x.metric == "" || !ok:
			case x.over:
				pairs[x.metric] = append(pairs[x.metric], Pair{rate, rates[""]})
			default:
				pairs[x.metric] = append(pairs[x.metric], Pair{rates[""], rate})
			}
		}
	}
	return nil
}
