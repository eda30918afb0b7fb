package main

import (
	"io"
	"strings"
	"testing"
)

func TestRoles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		names  string
		direct bool
		want   roles
		err    string
	}{
		{names: "reader,worker", direct: true, want: roles{reader: true, worker: true}},
		{names: "reader, worker, warmer", direct: true, want: roles{reader: true, worker: true}},
		{names: "reader", want: roles{reader: true}},
		{names: "worker,warmer", want: roles{worker: true}},
		{names: "reader", direct: true, err: "needs a broker"},
		{names: "worker,warmer", direct: true, err: "needs a broker"},
		{names: "warmer", err: "a part of worker"},
		{names: "reader,warmer", err: "a part of worker"},
		{names: "reader,worker,console", err: "not part of this version"},
		{names: "reeder", err: "unknown role"},
		{names: "", err: "unknown role"},
	} {
		got, err := parseRoles(strings.Split(c.names, ","), c.direct)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || report(io.Discard, err) != exitUsage {
				t.Errorf("--roles %s: %v, want a usage error with %q", c.names, err, c.err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("--roles %s: %+v, %v, want %+v", c.names, got, err, c.want)
		}
	}
}
