// Package lookup makes the lookups of rules: it reads, on the primary, what a
// changed row does not have and a key or tag needs.
//
// A lookup runs after the change was handed on, in a snapshot of the primary
// that is taken then, and so contains the change's commit (PROTOCOL, GATE). What
// the looked-up tables showed before, and what they show later, is not its
// business: their changes are in the log too, and need rules of their own.
package lookup
