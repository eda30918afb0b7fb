// Package e2e tests the program as its users have it: the built binary, real
// servers, signals, exit codes.
package e2e
