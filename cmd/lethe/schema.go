package main

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/lookup"
	"github.com/lethe-cache/lethe/rules"
)

// readSchema reads what the rules need to know of the database: their tables,
// what their statements would return, and what it makes of their lookups. It
// changes and executes nothing.
func readSchema(ctx context.Context, conn *pgx.Conn, set *rules.Set) (rules.Schema, error) {
	schema, err := catalog.Read(ctx, conn, catalog.Tables(set.Tables()))
	if err == nil {
		schema.Statements, err = catalog.DescribeSet(ctx, conn, set)
	}
	if err == nil {
		schema.Lookups, err = lookup.Describe(ctx, conn, set)
	}
	if err != nil {
		return schema, cdc.Classify("read the live schema", err)
	}
	return schema, nil
}
