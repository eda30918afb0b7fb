// Package lethe is the root of Lethe, which keeps caches true to a Postgres
// database. The program is in cmd/lethe; applications import package client.
// The root holds the worked example of rules, so that the demonstration and the
// tests use the very file that people read.
package lethe

import _ "embed"

//go:generate sh -c "go run ./cmd/lethe check --schema > rules.schema.json.new && mv rules.schema.json.new rules.schema.json"

// ExampleRules is rules.yaml: what a small shop caches, and what makes it
// forget. Its tables are those of internal/shop.
//
//go:embed rules.yaml
var ExampleRules string
