package main

import (
	"os"
	"runtime"
	"strings"
)

// Machine is what the numbers depend on.
type Machine struct {
	Cores    int    `json:"cores"`
	Model    string `json:"model,omitempty"`
	System   string `json:"system"`
	Go       string `json:"go"`
	Postgres string `json:"postgres,omitempty"`
	Redis    string `json:"redis,omitempty"`
	Kafka    string `json:"kafka,omitempty"`
	Lethe    string `json:"lethe,omitempty"`
	// Load is the load average over the last minute when the run began: above
	// about 0.5 on 2 cores somebody else was measured as well.
	Load string `json:"load,omitempty"`
}

// thisMachine fills in what can be known without the servers.
func thisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version()}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.Model = cpuModel(string(data))
	}
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load, _, _ = strings.Cut(string(data), " ")
	}
	return m
}

// cpuModel finds the first "model name" of /proc/cpuinfo.
func cpuModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
