package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/lethe-cache/lethe/rules"
)

// The exit codes of every command.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitRules  = 3
)

// exitError carries the exit code that an error asks for, and what the person
// who reads it should do next.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...), hint: "lethe --help lists commands and settings"}
}

// silent is an error whose text has been printed already.
func silent(code int) error { return &exitError{code: code} }

// hinter is what an error of any room may implement to say how it is cured.
type hinter interface{ Hint() string }

// report prints an error as one sentence and its cure, and returns the exit
// code that it stands for.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	var exit *exitError
	isExit := errors.As(err, &exit)
	if isExit && exit.err == nil {
		return exit.code
	}
	var findings rules.Findings
	if errors.As(err, &findings) {
		printFindings(w, findings)
		fmt.Fprintf(w, "Error: the rules are not valid: %d error(s)\n", len(findings.Errors()))
		return exitRules
	}
	fmt.Fprintf(w, "Error: %v\n", err)
	hint := ""
	var h hinter
	if errors.As(err, &h) {
		hint = h.Hint()
	}
	if isExit && exit.hint != "" {
		hint = exit.hint
	}
	if hint != "" {
		fmt.Fprintf(w, "Try: %s\n", hint)
	}
	if isExit {
		return exit.code
	}
	return exitFailed
}
