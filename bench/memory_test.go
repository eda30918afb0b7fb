package main

import "testing"

func TestStatusMB(t *testing.T) {
	t.Parallel()
	const status = "Name:\tbench\nVmPeak:\t 9999999 kB\nVmHWM:\t   65536 kB\nVmRSS:\t   32768 kB\n"
	for field, want := range map[string]float64{"VmHWM": 64, "VmRSS": 32} {
		if got, err := statusMB(status, field); err != nil || got != want {
			t.Errorf("statusMB(%s) = %v, %v, want %v", field, got, err, want)
		}
	}
	if _, err := statusMB(status, "VmSwap"); err == nil {
		t.Error("statusMB of a field that is not there: no error")
	}
	if _, err := statusMB("VmHWM:\tmuch kB\n", "VmHWM"); err == nil {
		t.Error("statusMB of something that is no number: no error")
	}
}
