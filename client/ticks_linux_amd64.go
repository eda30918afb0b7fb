package client

import (
	"os"
	"strings"
	"syscall"
	"time"
)

// ticks is the processor's time stamp counter.
func ticks() uint64

// ticksUsable reports whether the kernel itself makes its monotonic clock from
// the counter. It does so only if the counters of all cores agree and never
// stop, and it watches them. In a bubble of testing/synctest the program's clock
// is not the kernel's, and begins in the year 2000.
func ticksUsable() bool {
	var kernel syscall.Timeval
	if err := syscall.Gettimeofday(&kernel); err != nil || time.Since(time.Unix(kernel.Unix())).Abs() > time.Hour {
		return false
	}
	name, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	return err == nil && strings.TrimSpace(string(name)) == "tsc"
}
