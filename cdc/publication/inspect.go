package publication

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/rules"
)

// Report is what Inspect found. Names are schema.name.
type Report struct {
	// Unusable is not nil if a publication is of a kind that Sync refuses;
	// nothing else is told then.
	Unusable error
	// Absent are publications that do not exist.
	Absent []string
	// Breaking are tables whose updates fail at this moment.
	Breaking []string
	// Statements are what Sync would run on tables and options.
	Statements []string
	// Blind, Missing and MissingColumns are as in Changes.
	Blind, Missing, MissingColumns []string
	// Whole are tables with REPLICA IDENTITY FULL, of which whole rows are
	// published although column lists are in use.
	Whole []string
	// Guarded says that the guard is installed and knows the publication.
	Guarded bool
}

// Inspect reports what Sync would do, and does nothing.
func Inspect(ctx context.Context, conn Conn, cfg Config, uses []rules.TableUse) (Report, error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	y := newSyncer(conn, cfg, uses)
	var err error
	y.state, err = read(ctx, conn, y.cfg, y.names)
	if unusable := new(UnusableError); errors.As(err, &unusable) {
		return Report{Unusable: err}, nil
	}
	if err != nil {
		return Report{}, err
	}
	y.describe()
	r := Report{Blind: y.changes.Blind, Missing: y.changes.Missing, MissingColumns: y.changes.MissingColumns, Guarded: y.state.guarded}
	for _, name := range y.cfg.Names() {
		p, inserts := y.state.pubs[name], name == y.cfg.Inserts()
		if p == nil {
			r.Absent = append(r.Absent, name)
		} else if !p.inOrder(y.state.version, inserts) {
			r.Statements = append(r.Statements, "ALTER PUBLICATION "+quote(name)+" SET "+options(y.state.version, inserts)+";")
		}
	}
	for _, t := range y.state.tables {
		use := y.uses[t.qualified()]
		w := wanted(y.cfg, y.state, t, use)
		if t.breaks(y.cfg, y.state) {
			r.Breaking = append(r.Breaking, t.qualified())
		}
		if !t.satisfied(w) {
			r.Statements = append(r.Statements, y.statements(t, w)...)
		}
		if use != nil && slices.ContainsFunc(t.members, func(m member) bool { return m.Identity == "f" }) {
			r.Whole = append(r.Whole, t.qualified())
		}
	}
	return r, nil
}

func newSyncer(conn Conn, cfg Config, uses []rules.TableUse) *syncer {
	y := &syncer{conn: conn, cfg: cfg.withDefaults(), uses: make(map[string]*rules.TableUse, len(uses))}
	for i := range uses {
		name := uses[i].QualifiedName()
		y.uses[name] = &uses[i]
		y.names = append(y.names, name)
	}
	return y
}

// QuoteTable quotes schema.name parts for a statement.
func QuoteTable(schema, name string) string { return pgx.Identifier{schema, name}.Sanitize() }
