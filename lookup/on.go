package lookup

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Now answers lookups one by one, as a matcher asks for them: for explanations,
// where nobody knows before which there will be.
func (r *Runner) Now(ctx context.Context) rules.Lookups { return now{ctx, r} }

type now struct {
	ctx    context.Context
	runner *Runner
}

// Lookup is rules.Lookups.
func (n now) Lookup(r *rules.Rule, params [][]byte) (rules.LookupResult, error) {
	answers, err := n.runner.Lookup(n.ctx, change.Source{}, []rules.LookupRequest{{Rule: r, Params: params}})
	if err != nil {
		return rules.LookupResult{}, err
	}
	return answers[0].LookupResult, answers[0].Err
}

// In answers lookups inside of a transaction, with what that has changed. Each
// is a savepoint of its own, in which nothing can be written, so that one that
// fails leaves the transaction as it is.
func In(ctx context.Context, tx pgx.Tx) rules.Lookups { return in{ctx, tx} }

var errDone = errors.New("done")

type in struct {
	ctx context.Context
	tx  pgx.Tx
}

// Lookup is rules.Lookups.
func (i in) Lookup(r *rules.Rule, params [][]byte) (rules.LookupResult, error) {
	var a rules.LookupResult
	err := pgx.BeginFunc(i.ctx, i.tx, func(tx pgx.Tx) error {
		for name, value := range settings(StatementTimeoutDefault) {
			switch name {
			case "application_name", "client_encoding", "default_transaction_isolation", "default_transaction_read_only":
				continue
			}
			if _, err := tx.Exec(i.ctx, "SELECT pg_catalog.set_config($1, $2, true)", name, value); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(i.ctx, "SET TRANSACTION READ ONLY"); err != nil {
			return err
		}
		got := tx.Conn().PgConn().ExecParams(i.ctx, r.Lookup.Statement(), params, nil, nil, nil).Read()
		if got.Err != nil {
			return got.Err
		}
		for _, f := range got.FieldDescriptions {
			a.Types = append(a.Types, f.DataTypeOID)
		}
		memory := memoryMax
		for _, row := range got.Rows {
			if !a.More {
				add(&a, row, &memory)
			}
		}
		return errDone
	})
	if errors.Is(err, errDone) { // the savepoint is rolled back, and its settings with it
		return a, nil
	}
	return rules.LookupResult{}, fmt.Errorf("look up in the transaction: %w", err)
}
