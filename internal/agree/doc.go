// Package agree holds a property test: explain and the running worker agree on
// random schemas, rules and transactions.
package agree
