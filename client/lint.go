package client

import "errors"

// ErrKey is in the errors of keys and tags that could not be invalidated by
// name, or that break the rule of Options.KeyPattern.
var ErrKey = errors.New("not a key")
