package cdc

// Classify adds op to err, and wraps it in an *Error if trying again does not
// cure it: what connects to the same database beside a Reader judges as it does.
func Classify(op string, err error) error { return classify(op, err) }
