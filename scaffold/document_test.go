package scaffold

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

// TestDocument writes the document of the repository's example.
func TestDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, err := rules.Parse("rules.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "shop.golden.md", Document(set))
}

const everyField = `version: 1
namespace: ""
entries:
  page:
    key: page:{id}
    ttl: never
    mode: plain
    description: |
      A page | with a bar,
      on two lines.
    owner: web
  v2.user:
    key: user:{id}
    ttl: 36h
    negative_ttl: 90s
    max_stale: 1m30s
    max_value: 64KB
    versions: 2
    l1: false
    tags: ["team:{team|lower}", "all"]
    load: {sql: "SELECT id, team FROM users WHERE id = ANY(@id)"}
  orphan:
    key: orphan:{id}
    ttl: 10m
rules:
  - {name: users, table: app.users, on: [update], when: "changed('team') || changed('name')", tags: {all: ["team:{team|lower}", "all"]}, action: stale, owner: crew, description: who is who}
  - {name: teams, table: teams, keys: ["team-page:{id}"], cascade: false}
  - {name: sites, table: sites, keys: ["site:{id}"], action: rewarm}
dependencies:
  - {of: "site:{id}", also: ["page:{id}"]}
`

func TestDocumentOfEveryField(t *testing.T) {
	t.Parallel()
	set, err := rules.Parse("rules.yaml", []byte(everyField))
	if err != nil {
		t.Fatal(err)
	}
	text := Document(set)
	golden(t, "every.golden.md", text)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "|") && strings.Count(line, "|")-strings.Count(line, `\|`) != 5 && strings.Count(line, "|")-strings.Count(line, `\|`) != 6 {
			t.Errorf("a cell breaks its table: %s", line)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 36 * time.Hour: "36h", 48 * time.Hour: "2d", 90 * time.Minute: "1h30m", 90 * time.Second: "1m30s", 500 * time.Millisecond: "500ms", time.Minute: "1m",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, want %q", d, got, want)
		}
	}
}
