// Command try runs the shop as it would be run for real, on throwaway servers:
// Postgres, Redis, `lethe run`, and two instances. It shows a write through one
// being seen by the other and then waits for Ctrl-C. `make shop` calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	once := flag.Bool("once", false, "end after the demonstration")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := try(ctx, os.Stdout, *once); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func try(ctx context.Context, out io.Writer, once bool) (err error) {
	fmt.Fprintln(out, "starting Postgres, Redis, lethe run and two shops ...")
	s, err := start(ctx, io.Discard)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := show(ctx, out, s); err != nil {
		return err
	}
	if once {
		return nil
	}
	fmt.Fprintf(out, `
Now you:

  curl -i http://%[1]s/products/7
  curl -i -X PUT -d '{"price": 1.23}' http://%[1]s/products/7/price
  curl -i http://%[2]s/products/7        (or with -H 'Lethe-After: <the token>')
  curl http://%[2]s/categories/10
  curl http://%[2]s/metrics

Ctrl-C ends it.
`, s.a, s.b)
	<-ctx.Done()
	return nil
}

// show writes through A and reads through B, which had the product cached.
func show(ctx context.Context, out io.Writer, s *stage) error {
	steps := []struct{ what, method, address, path, body string }{
		{"B reads a product: a miss, then it is cached", "GET", s.b, "/products/42", ""},
		{"B reads it again: a hit", "GET", s.b, "/products/42", ""},
		{"A changes the price", "PUT", s.a, "/products/42/price", `{"price": 9.99}`},
		{"B reads it with A's token: it contains the write", "GET", s.b, "/products/42", ""},
	}
	token := ""
	for _, step := range steps {
		r, err := request(ctx, step.method, step.address, step.path, step.body, token)
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		if t := r.header.Get("Lethe-After"); t != "" {
			token = t
		}
		fmt.Fprintf(out, "%s\n  %s http://%s%s  %d  %s\n", step.what, step.method, step.address, step.path, r.code, r.body)
	}
	return nil
}
