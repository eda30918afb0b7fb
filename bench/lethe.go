package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/internal/servers"
)

// letheProgram is the binary under measurement and what it is run with.
type letheProgram struct {
	path     string
	version  string
	dir      string // rules, logs
	postgres string
	redis    string
	// publication is the one that lethe makes for its rules.
	publication string
	runs        int
}

// buildLimit bounds the building of the binary, which no other limit counts.
const buildLimit = 10 * time.Minute

// buildLethe builds the binary from this module.
func buildLethe(ctx context.Context, dir string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	return servers.BuildLethe(ctx, dir)
}

func newLetheProgram(ctx context.Context, path, dir string) (*letheProgram, error) {
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("run %s version: %w", path, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rules.yaml"), []byte(rulesYAML), 0o644); err != nil {
		return nil, err
	}
	return &letheProgram{path: path, version: strings.TrimSpace(string(out)), dir: dir, publication: "bench_lethe"}, nil
}

// letheRun is one running `lethe run`.
type letheRun struct {
	running
	cmd    *exec.Cmd
	listen string
	log    string
}

// start runs the binary on slot; with brokers in kafka mode, on a topic and a
// group of its own, so that no round finds what an earlier one left.
func (l *letheProgram) start(ctx context.Context, slot string, brokers []string) (*letheRun, error) {
	l.runs++
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	run := &letheRun{listen: listen, log: filepath.Join(l.dir, fmt.Sprintf("lethe-%d.log", l.runs))}
	output, err := os.Create(run.log)
	if err != nil {
		return nil, fmt.Errorf("make log of lethe: %w", err)
	}
	defer output.Close()
	group := fmt.Sprintf("bench-%d", l.runs)
	run.cmd = exec.Command(l.path, "run")
	run.cmd.Dir = l.dir // no lethe.yaml there
	run.cmd.Env = append(withoutSettings(os.Environ()),
		"LETHE_POSTGRES_URL="+l.postgres, "LETHE_REDIS_URL="+l.redis, "LETHE_RULES="+filepath.Join(l.dir, "rules.yaml"),
		"LETHE_SLOT="+slot, "LETHE_PUBLICATION="+l.publication, "LETHE_LISTEN="+listen,
		"LETHE_KAFKA_BROKERS="+strings.Join(brokers, ","), "LETHE_KAFKA_TOPIC=lethe."+group, "LETHE_KAFKA_GROUP="+group,
		"GOTRACEBACK=all")
	run.cmd.Stdout, run.cmd.Stderr = output, output
	// A process group of its own: Ctrl-C is for the bench, which then stops it.
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := run.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start lethe: %w", err)
	}
	failed, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		err := run.cmd.Wait()
		failed <- fmt.Errorf("lethe run ended (%v): %s", err, tail(run.log))
	}()
	run.failed = failed
	run.stop = func() error { return run.end(done) }
	if len(brokers) > 0 {
		run.ready = func(ctx context.Context) error { return groupStable(ctx, brokers, group) }
	}
	return run, nil
}

// end stops the process as an operator would, and kills it after 10 s. What it
// has not confirmed is of no interest: its slot goes with the round.
func (r *letheRun) end(done <-chan struct{}) error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // it may have gone already
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		_ = r.cmd.Process.Kill()
		<-done
		return fmt.Errorf("lethe did not stop within 10 s of SIGTERM: %s", tail(r.log))
	}
}

// waitReady returns when /readyz answers 200.
func (r *letheRun) waitReady(ctx context.Context) error {
	var last string
	err := poll(ctx, 30*time.Second, 20*time.Millisecond, "wait for /readyz", func() (bool, error) {
		select {
		case err := <-r.failed:
			return false, err
		default:
		}
		resp, err := http.Get("http://" + r.listen + "/readyz")
		if err != nil {
			last = err.Error()
			return false, nil // not listening yet
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 2000))
		last = string(bytes.TrimSpace(body))
		return resp.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return fmt.Errorf("%w (last answer: %s; log: %s)", err, last, tail(r.log))
	}
	return nil
}

// groupStable returns when the consumer group has its partitions. A worker that
// joins in the middle of a round would be measured by how slowly groups form.
func groupStable(ctx context.Context, brokers []string, group string) error {
	client := &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 5 * time.Second}
	return poll(ctx, 40*time.Second, 50*time.Millisecond, "wait for consumer group "+group, func() (bool, error) {
		resp, err := client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		// An error is no reason to give up: the coordinator comes up with the
		// first group.
		return err == nil && len(resp.Groups) == 1 && resp.Groups[0].GroupState == "Stable", nil
	})
}

// withoutSettings removes LETHE_* from an environment: the bench sets its own.
func withoutSettings(environ []string) []string {
	out := make([]string, 0, len(environ))
	for _, e := range environ {
		if !strings.HasPrefix(e, "LETHE_") {
			out = append(out, e)
		}
	}
	return out
}

// freeAddress returns an address of 127.0.0.1 that was free a moment ago.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// tail returns the end of a log, on one line.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimSpace(data)
	if len(data) > 1500 {
		data = data[len(data)-1500:]
	}
	return strings.ReplaceAll(string(data), "\n", " | ")
}
