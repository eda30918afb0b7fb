// Command lethe keeps caches true to a Postgres database: it tails logical
// replication, maps committed row changes to cache keys and tags by rules, and
// empties Redis and every in-process cache of what they made stale.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
