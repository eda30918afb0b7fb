package main

// pruneRate is the setting as the worker has it, to whom 0 is the default.
func (p *pipeline) pruneRate() int {
	if p.settings.PruneRate <= 0 {
		return -1
	}
	return p.settings.PruneRate
}
