// Package scaffold writes files that people go on with: a first rules.yaml from
// a live schema (Rules), entries for the keys that are in Redis already
// (FromKeys), and the document of a cache strategy from rules.yaml (Document).
//
// The output depends on the input only, so that two runs can be compared.
package scaffold
