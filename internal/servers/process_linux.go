package servers

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func attributes(u *user, lastWill syscall.Signal) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: lastWill}
	if u != nil {
		a.Credential = u.credential()
	}
	return a
}

// children lists the child processes of pid. It reads every process's parent,
// because /proc/PID/task/TID/children is not there in every kernel.
func children(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, parent, ok := stat(child); ok && parent == pid {
			found = append(found, child)
		}
	}
	return found
}

// alive is false also for a zombie: its parent may be an init that does not
// wait for it.
func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != "Z" && state != "X"
}

// stat reads the state and the parent of a process. The name in between is in
// parentheses and may itself contain spaces and parentheses.
func stat(pid int) (state string, parent int, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, false
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return "", 0, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(f[1])
	return f[0], parent, err == nil
}
