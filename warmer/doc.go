// Package warmer fills cache entries by itself: a Loader reads their values from
// the primary by the `load.sql` of their class, many at once, and a Warmer
// stores them by the protocol, exactly as a client would: BEGIN, LOAD,
// REGISTER, FILL.
//
// A warmed value is one line of JSON: an object of the loader's columns in the
// order of the select.
package warmer
