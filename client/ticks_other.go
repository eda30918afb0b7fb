//go:build !linux || !amd64

package client

func ticks() uint64 { return 0 }

func ticksUsable() bool { return false }
