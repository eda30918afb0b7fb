package lookup

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// run makes the lookups of one rule: requests[i] for each i of group. Those that
// the server gives up are made again, a few times.
func run(ctx context.Context, conn *pgconn.PgConn, requests []rules.LookupRequest, answers []rules.LookupAnswer, group []int, memory *int) error {
	for attempt := 1; len(group) > 0; attempt++ {
		var again []int
		for chunk := range slices.Chunk(group, pipelineMax) {
			if err := pipeline(ctx, conn, requests, answers, chunk, memory); err != nil {
				return err
			}
			for _, i := range chunk {
				switch verdict(answers[i].Err) {
				case passing:
					return answers[i].Err
				case givenUp:
					if attempt < attempts {
						again = append(again, i)
					}
				}
			}
		}
		group = again
	}
	return nil
}

// pipeline sends the statement once, to be parsed, and then each set of
// parameters, all in one round trip. Every lookup is a transaction of its own:
// one that fails leaves the others alone.
func pipeline(ctx context.Context, conn *pgconn.PgConn, requests []rules.LookupRequest, answers []rules.LookupAnswer, group []int, memory *int) (err error) {
	p := conn.StartPipeline(ctx)
	defer func() {
		if closeErr := p.Close(); err == nil && closeErr != nil && !refused(closeErr) {
			err = closeErr
		}
	}()
	p.SendPrepare("", requests[group[0]].Rule.Lookup.Statement(), nil)
	p.SendPipelineSync()
	for _, i := range group {
		p.SendQueryPrepared("", requests[i].Params, nil, nil)
		p.SendPipelineSync()
	}
	if err := p.Flush(); err != nil {
		return err
	}
	_, parseErr := p.GetResults()
	if parseErr != nil && !refused(parseErr) {
		return parseErr
	}
	if err := synced(p); err != nil {
		return err
	}
	for _, i := range group {
		answers[i], err = answer(p, len(requests[i].Rule.Lookup.Columns), memory)
		if err != nil {
			return err
		}
		if parseErr != nil {
			answers[i] = rules.LookupAnswer{Err: parseErr} // not that the statement was never parsed
		}
		if err := synced(p); err != nil {
			return err
		}
	}
	return nil
}

// synced reads the end of one transaction.
func synced(p *pgconn.Pipeline) error {
	r, err := p.GetResults()
	if err != nil {
		return err
	}
	if _, ok := r.(*pgconn.PipelineSync); !ok {
		return fmt.Errorf("out of step with the server: %T, want the end of a lookup", r)
	}
	return nil
}

// refused reports whether the server answered, with an error.
func refused(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr)
}

// answer reads one lookup. An error is one of the connection.
func answer(p *pgconn.Pipeline, columns int, memory *int) (rules.LookupAnswer, error) {
	r, err := p.GetResults()
	if err != nil {
		return refusal(err)
	}
	reader, ok := r.(*pgconn.ResultReader)
	if !ok {
		return rules.LookupAnswer{}, fmt.Errorf("out of step with the server: %T, want rows", r)
	}
	var a rules.LookupResult
	for _, f := range reader.FieldDescriptions() {
		a.Types = append(a.Types, f.DataTypeOID)
	}
	for reader.NextRow() {
		if values := reader.Values(); !a.More && len(values) == columns {
			add(&a, values, memory)
		}
	}
	if _, err := reader.Close(); err != nil {
		return refusal(err)
	}
	return rules.LookupAnswer{LookupResult: a}, nil
}

func refusal(err error) (rules.LookupAnswer, error) {
	if refused(err) {
		return rules.LookupAnswer{Err: err}, nil
	}
	return rules.LookupAnswer{}, err
}

// add copies a row, in one piece of memory; or notes that there is no room.
func add(a *rules.LookupResult, values [][]byte, memory *int) {
	size := 0
	for _, v := range values {
		size += len(v)
	}
	if *memory -= size + rowOverhead; *memory < 0 || len(a.Rows) >= rules.LookupRowsMax {
		a.Rows, a.More = nil, true
		return
	}
	text := make([]byte, 0, size)
	row := make(change.Row, len(values))
	for i, v := range values {
		if v == nil {
			row[i].Kind = change.Null
			continue
		}
		start := len(text)
		text = append(text, v...)
		row[i] = change.Value{Kind: change.Text, Bytes: text[start:len(text):len(text)]}
	}
	a.Rows = append(a.Rows, row)
}

// rowOverhead is about what a row costs besides its text.
const rowOverhead = 96

// What an error says of the next attempt.
type outlook byte

const (
	// answered: there is none, or one that the next attempt meets too.
	answered outlook = iota
	// passing: the server is about to be well again, however long it takes.
	passing
	// givenUp: this lookup was, for reasons that may be its own.
	givenUp
)

func verdict(err error) outlook {
	var pgErr *pgconn.PgError
	if err == nil || !errors.As(err, &pgErr) {
		return answered
	}
	switch pgErr.Code {
	case "57014", "55P03", "0A000", "26000": // canceled, no lock; the table was altered under the statement
		return givenUp
	}
	switch pgErr.Code[:2] {
	case "08", "40", "57", "58": // connection, serialization, operator, system
		return passing
	case "53", "55", "XX": // resources, state, internal
		return givenUp
	}
	return answered
}
