package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/cdc/publication"
)

// TestUnseenTablesAreToldOnce: the watch finds them every second, which would
// fill the log of a process that goes on with them.
func TestUnseenTablesAreToldOnce(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := &database{log: slog.New(slog.NewTextHandler(&out, nil))}
	expect := func(warnings int, what string) {
		t.Helper()
		if got := strings.Count(out.String(), "level=WARN"); got != warnings {
			t.Fatalf("%s: %d warnings, want %d:\n%s", what, got, warnings, out.String())
		}
	}
	d.logPublications(publication.Changes{})
	expect(0, "nothing is amiss")
	for range 3 {
		d.logPublications(publication.Changes{Missing: []string{"public.items"}})
		expect(1, "a table is missing")
	}
	d.logPublications(publication.Changes{Missing: []string{"public.items"}, Blind: []string{"public.others"}})
	expect(3, "another is blind")
	for range 2 {
		d.logPublications(publication.Changes{})
	}
	expect(3, "all is well")
	if n := strings.Count(out.String(), "can be seen again"); n != 1 {
		t.Errorf("the end is told %d times, want once", n)
	}
	d.logPublications(publication.Changes{Missing: []string{"public.items"}})
	expect(4, "it is missing again")
}
