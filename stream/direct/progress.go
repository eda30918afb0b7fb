package direct

// Appended is the number of the last batch that was appended, 0 before the
// first.
func (l *Log) Appended() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.last
}

// Applied is the number of the last batch of the unbroken run of batches that
// the worker has applied. Unlike Durable it does not wait for Config.Keep.
func (l *Log) Applied() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.acked
}
