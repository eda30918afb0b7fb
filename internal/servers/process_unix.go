//go:build unix && !linux

package servers

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// attributes: these systems have no parent-death signal; the janitor of the
// scratch directory ends what its owner left running.
func attributes(u *user, _ syscall.Signal) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if u != nil {
		a.Credential = u.credential()
	}
	return a
}

// children lists the child processes of pid.
func children(pid int) []int {
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output()
	if err != nil {
		return nil
	}
	var found []int
	for f := range strings.FieldsSeq(string(out)) {
		if n, err := strconv.Atoi(f); err == nil {
			found = append(found, n)
		}
	}
	return found
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
