package client

import (
	"os"
	"strings"
)

// ticks is the processor's time stamp counter.
func ticks() uint64

// ticksUsable reports whether the kernel itself makes its monotonic clock from
// the counter. It does so only if the counters of all cores agree and never
// stop, and it watches them.
func ticksUsable() bool {
	name, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	return err == nil && strings.TrimSpace(string(name)) == "tsc"
}
