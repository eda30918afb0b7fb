package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// command is what a process is started from.
type command struct {
	path string
	args []string
	dir  string
	env  []string // added to the environment of this process
	log  string   // file that output is appended to
	user *user    // nil: run as oneself

	// lastWill is the signal that the kernel sends when this process dies.
	lastWill syscall.Signal
	// pidFile is written for the scratch directory's janitor; it is the second
	// line of defence, and the only one where the kernel has no last will.
	pidFile string
}

// process is a running server. It never outlives the process that started it.
type process struct {
	cmd     *exec.Cmd
	name    string
	log     string
	pidFile string
	done    chan struct{} // closed when it has been waited for
	err     error         // of Wait; read only after done
}

// startProcess starts c in a process group of its own, so that a Ctrl-C at the
// terminal reaches only us and we decide in which order servers stop.
//
// The goroutine that starts it stays locked to its thread until the child is
// gone: the kernel ties the parent-death signal to the thread that forked, and
// the Go runtime ends idle threads, which would kill the server at random.
func startProcess(c command) (*process, error) {
	logFile, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", c.path, err)
	}
	defer logFile.Close()
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	// Files, not pipes: a pipe would need a goroutine, and the descriptors of
	// `go test` would keep it waiting for our servers.
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = attributes(c.user, c.lastWill)

	p := &process{cmd: cmd, name: c.path, log: c.log, pidFile: c.pidFile, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		if err == nil && c.pidFile != "" {
			err = os.WriteFile(c.pidFile, fmt.Appendf(nil, "%d %d\n", int(c.lastWill), cmd.Process.Pid), 0o644)
			if err != nil {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		if c.pidFile != "" {
			_ = os.Remove(c.pidFile)
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", c.path, err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// exited says whether the process is gone.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop sends sig and waits; a process that has not gone after patience is
// killed, and that is an error, because the caller asked for a clean stop.
func (p *process) stop(sig syscall.Signal, patience time.Duration) error {
	if p.exited() {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.kill()
		return fmt.Errorf("stop %s: still running %s after %v, killed\n%s", p.name, patience, sig, p.tail())
	}
}

// kill ends the process and all its descendants with SIGKILL and returns when
// they are gone. The parent is frozen first, so that it can neither notice the
// death of a child nor start another one.
func (p *process) kill() {
	if p.exited() {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
	family := descendants(p.pid())
	_ = p.cmd.Process.Kill()
	for _, pid := range family {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
	for _, pid := range family {
		waitGone(pid)
	}
}

// waitGone returns when pid is dead or a zombie; it has been sent SIGKILL, so
// the wait is short.
func waitGone(pid int) {
	for range 5000 {
		if !alive(pid) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// tail returns the last lines of the log, for error messages.
func (p *process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 2000
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-most), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	return string(bytes.TrimSpace(b))
}

// errExited is what ready reports of a server that ended while it started.
var errExited = errors.New("exited while starting")

// ready calls probe until it succeeds, the process has exited, or ctx ends
// (after a minute at the latest).
func (p *process) ready(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, done := context.WithTimeout(ctx, 2*time.Second)
		err := probe(attempt)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s %w (%v):\n%s", p.name, errExited, p.err, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %v)\n%s", p.name, ctx.Err(), err, p.tail())
		case <-tick.C:
		}
	}
}

// run starts a program, waits for it and returns its output in the error if it
// fails. The program ends with ctx.
func run(ctx context.Context, u *user, dir, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = attributes(u, 0)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s: %w\n%s", path, err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// descendants returns the children of pid, their children, and so on.
func descendants(pid int) []int {
	var all []int
	for todo := []int{pid}; len(todo) > 0; {
		kids := children(todo[0])
		todo = append(todo[1:], kids...)
		all = append(all, kids...)
	}
	slices.Sort(all)
	return all
}

// lines formats settings one to a line, sorted.
func lines(settings map[string]string, format string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, format, name, settings[name])
	}
	return b.String()
}
