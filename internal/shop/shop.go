// Package shop holds the small schema that the example rules, the demo and the
// documentation speak of.
package shop

import _ "embed"

// Schema is the SQL that creates the shop's tables and fills them.
//
//go:embed shop.sql
var Schema string
