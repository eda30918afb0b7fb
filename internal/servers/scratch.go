package servers

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// scratch is a throwaway directory that vanishes with its owner.
//
// A small shell, the janitor, waits for the end of its standard input, which is
// a pipe that only this process holds open. Whatever ends this process closes
// the pipe; the janitor then kills what the directory's pid files name and
// removes the directory. close does nothing else than close the pipe: what is
// exercised at every ordinary end is what is relied on at a violent one.
type scratch struct {
	dir     string
	janitor *exec.Cmd
	pipe    io.WriteCloser
	once    sync.Once
	err     error
}

// A pid file holds a signal and a process: the signal that lets the server
// leave nothing behind (Postgres its shared memory), which it has two seconds
// for. A server that dies may still write for a moment, hence the repetition.
const janitor = `cat >/dev/null
for f in "$1"/*.pid; do
	[ -f "$f" ] && read -r sig pid <"$f" || continue
	kill "-$sig" "$pid" 2>/dev/null || continue
	for i in 1 2 3 4 5 6 7 8 9 10; do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.2
	done
	kill -9 "$pid" 2>/dev/null
done
for i in 1 2 3 4 5 6 7 8 9 10; do
	rm -rf -- "$1" 2>/dev/null && exit 0
	sleep 0.3
done
exit 1`

// newScratch makes a directory that other users may enter, below base or, if
// that is empty, below the system's directory for temporary files.
func newScratch(kind, base string) (*scratch, error) {
	if base == "" {
		base = os.TempDir()
		if os.Geteuid() == 0 && !enterable(base) {
			base = "/tmp" // a private TMPDIR would lock the unprivileged user out
		}
	}
	dir, err := os.MkdirTemp(base, "lethe-"+kind+"-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for %s: %w", kind, err)
	}
	s := &scratch{dir: dir}
	if err := os.Chmod(dir, 0o755); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("open %s to other users: %w", dir, err)
	}
	s.janitor = exec.Command("/bin/sh", "-c", janitor, "janitor", dir)
	s.janitor.Dir = "/"
	s.janitor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it
	if s.pipe, err = s.janitor.StdinPipe(); err == nil {
		err = s.janitor.Start()
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("start the janitor of %s: %w", dir, err)
	}
	return s, nil
}

func (s *scratch) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// close removes the directory; its servers have been stopped before. Calling
// it again returns the first result.
func (s *scratch) close() error {
	s.once.Do(func() {
		_ = s.pipe.Close()
		if err := s.janitor.Wait(); err != nil {
			s.err = fmt.Errorf("remove %s: %w", s.dir, err)
		}
	})
	return s.err
}
