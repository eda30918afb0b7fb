// Package servers starts real servers for tests, benchmarks and `lethe demo`:
// Postgres, Redis, Kafka, and a TCP proxy that breaks connections on demand.
//
// Every server listens on a port of 127.0.0.1 that is reserved for it as long as
// it is not closed, so that it can be stopped and started again at the same
// address, and keeps its data in a throwaway directory. Close stops it and
// removes the directory. A process that dies without calling Close (Ctrl-C, a
// panic, SIGKILL) takes its servers and their directories with it all the same:
// see process and scratch.
//
// The context given to a Start function bounds the start only. Servers are safe
// for concurrent use unless a method says otherwise; starting and stopping one
// server from two goroutines at once is serialised.
package servers
