// Package migrations holds the SQL that Lethe installs in the database, all of
// it in the schema lethe, and applies it.
//
// Nothing in it is required: what the role may not install is named, with what
// is lost by it and what to run, and Lethe works without it.
package migrations

import (
	"embed"
	"fmt"
)

//go:embed *.sql
var files embed.FS

// migration is one numbered file.
type migration struct {
	version int
	file    string
	// lost says what Lethe does without it, a full sentence.
	lost string
}

// all in the order of their application. Never edit or renumber one that was
// released: append.
var all = []migration{
	{1, "0001_source.sql", "Without lethe.source the era is not kept: every start forgets the whole cache and stamps are not used; " +
		"values read from standbys are not cached."},
	{2, "0002_dead_letters.sql", "Without lethe.dead_letters a change that can not be processed in direct mode is only logged."},
	{3, "0003_guard.sql", "Without the guard whole rows are published instead of the columns that rules read, and a DDL that takes " +
		"a replica identity away can break the application's updates until the next check, every second."},
	{4, "0004_gaps.sql", "Without lethe.gaps it is forgotten with the process that a table has just entered the publication, or was changed by a DDL: " +
		"a crash at that moment can leave entries stale."},
	{5, "0005_schedules.sql", "Without lethe.schedules rules with `at:` are refused, and messages with \"at\" become dead letters."},
	{6, "0006_dependencies.sql", "Without lethe.dependencies there are no dependencies but those of rules.yaml."},
	{8, "0008_edge.sql", "Without lethe.edge_outbox edge caches can not be told what was forgotten: `lethe run` refuses rules with edge."},
}

// Guard is the name of the migration that installs the guard.
const Guard = "0003_guard"

func (m migration) sql() (string, error) {
	b, err := files.ReadFile(m.file)
	if err != nil {
		return "", fmt.Errorf("read migration %s: %w", m.file, err)
	}
	return string(b), nil
}

func (m migration) name() string { return m.file[:len(m.file)-len(".sql")] }
