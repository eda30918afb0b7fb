package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
)

// KafkaConfig says which Kafka to start.
type KafkaConfig struct {
	// Brokers is their number, 1 (default) or more. Three of the real ones take
	// 1.1 GB.
	Brokers int
	// Fake asks for the broker in the process even where a real one is there:
	// it starts in a millisecond.
	Fake bool
	// Settings are lines of server.properties for each real broker, and
	// override the defaults.
	Settings map[string]string
}

// Kafka is a cluster of real brokers, each of which is a controller too, or
// kfake's cluster inside this process. Topics are not created by use.
type Kafka struct {
	fake    *kfake.Cluster // nil: real
	scratch *scratch
	brokers []*broker
}

// broker is one real broker; its ports are its own while it is stopped.
type broker struct {
	id         int
	java, libs string
	scratch    *scratch
	client     *port
	controller *port

	mu   sync.Mutex
	proc *process
}

// StartKafka starts a Kafka and returns when its brokers know each other. It is
// Apache Kafka if java is on PATH and its jars are in the cache or mvn can fetch
// them, else kfake; Real tells which.
func StartKafka(ctx context.Context, cfg KafkaConfig) (*Kafka, error) {
	cfg.Brokers = max(cfg.Brokers, 1)
	if !cfg.Fake {
		java, libs, err := kafkaJars(ctx)
		if err == nil {
			return startKafka(ctx, java, libs, cfg)
		}
		if !errors.Is(err, ErrNotInstalled) {
			return nil, err
		}
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(cfg.Brokers), kfake.GroupMinSessionTimeout(time.Second))
	if err != nil {
		return nil, fmt.Errorf("start kfake: %w", err)
	}
	return &Kafka{fake: c}, nil
}

func startKafka(ctx context.Context, java, libs string, cfg KafkaConfig) (*Kafka, error) {
	s, err := newScratch("kafka", "")
	if err != nil {
		return nil, err
	}
	k := &Kafka{scratch: s}
	for id := 1; id <= cfg.Brokers; id++ {
		b := &broker{id: id, java: java, libs: libs, scratch: s}
		k.brokers = append(k.brokers, b)
		if b.client, err = reservePort(0); err == nil {
			b.controller, err = reservePort(0)
		}
		if err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	if err := k.format(ctx, cfg.Settings); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	for _, b := range k.brokers {
		if err := b.start(); err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	for _, b := range k.brokers {
		if err := b.ready(ctx, len(k.brokers)); err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	return k, nil
}

// format writes each broker's settings and prepares its log directory.
func (k *Kafka) format(ctx context.Context, extra map[string]string) error {
	var voters []string
	for _, b := range k.brokers {
		voters = append(voters, fmt.Sprintf("%d@%s", b.id, b.controller.addr()))
	}
	// Any 16 bytes in URL-safe base64; the cluster lives in this directory only.
	const clusterID = "bGV0aGUtdGhyb3dhd2F5MQ"
	for _, b := range k.brokers {
		settings := b.settings(strings.Join(voters, ","), min(3, len(k.brokers)), extra)
		if err := os.WriteFile(b.file("properties"), []byte(settings), 0o644); err != nil {
			return fmt.Errorf("write settings of broker %d: %w", b.id, err)
		}
		_, err := run(ctx, nil, k.scratch.dir, b.java, append(b.jvm(),
			"kafka.tools.StorageTool", "format", "-t", clusterID, "-c", b.file("properties"))...)
		if err != nil {
			return fmt.Errorf("format broker %d: %w", b.id, err)
		}
	}
	return nil
}

func (b *broker) settings(voters string, replicas int, extra map[string]string) string {
	settings := map[string]string{
		"process.roles":                            "broker,controller",
		"node.id":                                  fmt.Sprint(b.id),
		"controller.quorum.voters":                 voters,
		"controller.listener.names":                "CONTROLLER",
		"listeners":                                "PLAINTEXT://" + b.client.addr() + ",CONTROLLER://" + b.controller.addr(),
		"advertised.listeners":                     "PLAINTEXT://" + b.client.addr(),
		"log.dirs":                                 b.scratch.path(fmt.Sprintf("data-%d", b.id)),
		"offsets.topic.replication.factor":         fmt.Sprint(replicas),
		"offsets.topic.num.partitions":             "5",
		"transaction.state.log.replication.factor": fmt.Sprint(replicas),
		"transaction.state.log.min.isr":            fmt.Sprint((replicas + 1) / 2),
		"default.replication.factor":               fmt.Sprint(replicas),
		"min.insync.replicas":                      fmt.Sprint((replicas + 1) / 2),
		"group.initial.rebalance.delay.ms":         "0",
		"auto.create.topics.enable":                "false",
	}
	for name, value := range extra {
		settings[name] = value
	}
	return lines(settings, "%s=%s\n")
}

// jvm is how every tool is called. Serial collection and the first compiler
// alone: a broker of a test lives for seconds and shares two cores.
func (b *broker) jvm() []string {
	return []string{"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", b.libs + "/*"}
}

func (b *broker) start() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.proc != nil && !b.proc.exited() {
		return fmt.Errorf("start broker %d: already running", b.id)
	}
	var err error
	b.proc, err = startProcess(command{
		path: b.java, args: append(b.jvm(), "kafka.Kafka", b.file("properties")),
		dir: b.scratch.dir, log: b.file("log"), pidFile: b.file("pid"), lastWill: syscall.SIGKILL,
	})
	return err
}

// ready waits until the broker sees that many in the cluster, itself included.
func (b *broker) ready(ctx context.Context, brokers int) error {
	return b.proc.ready(ctx, func(ctx context.Context) error {
		conn, err := (&kafka.Dialer{}).DialContext(ctx, "tcp", b.client.addr())
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		seen, err := conn.Brokers()
		if err == nil && len(seen) < brokers {
			err = fmt.Errorf("broker %d sees %d of %d", b.id, len(seen), brokers)
		}
		return err
	})
}

func (b *broker) file(ext string) string {
	return b.scratch.path(fmt.Sprintf("broker-%d.%s", b.id, ext))
}

// Brokers are the host:port of all brokers, running or not.
func (k *Kafka) Brokers() []string {
	if k.fake != nil {
		return k.fake.ListenAddrs()
	}
	var addrs []string
	for _, b := range k.brokers {
		addrs = append(addrs, b.client.addr())
	}
	return addrs
}

// Real is false for the fake in this process.
func (k *Kafka) Real() bool { return k.fake == nil }

// Fake is the cluster in this process, which answers errors and drops
// connections on demand; nil for real brokers.
func (k *Kafka) Fake() *kfake.Cluster { return k.fake }

// errFake is the answer to what only real brokers can do.
var errFake = errors.New("kfake's brokers cannot be stopped")

// Stop shuts down broker i (counted from 0, as in Brokers) and waits.
func (k *Kafka) Stop(i int) error {
	if k.fake != nil {
		return errFake
	}
	b := k.brokers[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.proc.stop(syscall.SIGTERM, 30*time.Second)
}

// Kill ends broker i with SIGKILL and leaves its data. Killing a fake one does
// nothing.
func (k *Kafka) Kill(i int) {
	if k.fake != nil {
		return
	}
	b := k.brokers[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proc.kill()
}

// Start starts broker i again, on the same port and data, and returns when it
// answers.
func (k *Kafka) Start(ctx context.Context, i int) error {
	if k.fake != nil {
		return errFake
	}
	if err := k.brokers[i].start(); err != nil {
		return err
	}
	return k.brokers[i].ready(ctx, 1)
}

// Close ends all brokers and removes their data. Calling it again does nothing.
func (k *Kafka) Close() error {
	if k.fake != nil {
		k.fake.Close()
		return nil
	}
	for _, b := range k.brokers {
		b.mu.Lock()
		if b.proc != nil {
			b.proc.kill()
		}
		b.mu.Unlock()
		b.client.release()
		b.controller.release()
	}
	return k.scratch.close()
}

// String says which Kafka this is, for people.
func (k *Kafka) String() string {
	if k.fake != nil {
		return "kfake (in this process)"
	}
	return fmt.Sprintf("Kafka %s (%s)", kafkaVersion, k.brokers[0].libs)
}

// kafkaJars returns the java program and the directory of Kafka's jars. Its
// error wraps ErrNotInstalled if there is no java, or neither the jars nor a way
// to fetch them.
func kafkaJars(ctx context.Context) (java, libs string, err error) {
	if java, err = exec.LookPath("java"); err != nil {
		return "", "", fmt.Errorf("look for java on PATH: %w", ErrNotInstalled)
	}
	libs, err = cached(ctx, "kafka-"+kafkaVersion, fetchKafka)
	if err != nil {
		return "", "", fmt.Errorf("kafka %s: %w: %w", kafkaVersion, ErrNotInstalled, err)
	}
	return java, libs, nil
}
