package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

func TestMain(m *testing.M) { harness.Main(m) }

func startShop(t *testing.T) *stage {
	t.Helper()
	s, err := start(t.Context(), t.Output())
	if errors.Is(err, servers.ErrNotInstalled) {
		t.Skipf("left out: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil { // also of a program that does not end well
			t.Error(err)
		}
	})
	return s
}

func (s *stage) get(t *testing.T, address, path, token string) answer {
	t.Helper()
	r, err := request(t.Context(), http.MethodGet, address, path, "", token)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sees waits until an instance shows something without being told of a write.
func (s *stage) sees(t *testing.T, address, path, want string) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, func() error {
		if r := s.get(t, address, path, ""); !strings.Contains(r.body, want) {
			return fmt.Errorf("GET %s: %d %s, want %s in it", path, r.code, r.body, want)
		}
		return nil
	})
}

func (s *stage) setPrice(t *testing.T, address, id, price string) (token string) {
	t.Helper()
	r, err := request(t.Context(), http.MethodPut, address, "/products/"+id+"/price", `{"price": `+price+`}`, "")
	if err != nil {
		t.Fatal(err)
	}
	token = r.header.Get("Lethe-After")
	if r.code != http.StatusNoContent || token == "" {
		t.Fatalf("PUT: %d %s, token %q", r.code, r.body, token)
	}
	if cookie := r.header.Get("Set-Cookie"); !strings.Contains(cookie, token) {
		t.Errorf("the cookie is %q, want the token %q in it", cookie, token)
	}
	return token
}

func (s *stage) execute(t *testing.T, sql string) {
	t.Helper()
	if err := s.postgres.Exec(t.Context(), "postgres", sql); err != nil {
		t.Fatal(err)
	}
}

// A write through one instance is seen by the other: at once by who brings the
// token, and soon by everybody.
func TestTwoInstances(t *testing.T) {
	s := startShop(t)
	for range 3 {
		for _, address := range []string{s.a, s.b} {
			if r := s.get(t, address, "/products/42", ""); r.code != http.StatusOK || !strings.Contains(r.body, `"id":42`) {
				t.Fatalf("GET: %d %s", r.code, r.body)
			}
		}
	}
	for i := range 20 {
		price := fmt.Sprintf("%d.25", 1000+i)
		token := s.setPrice(t, s.a, "42", price)
		if r := s.get(t, s.b, "/products/42", token); !strings.Contains(r.body, price) {
			t.Errorf("with the token: got %s, want the price %s", r.body, price)
		}
	}
	s.sees(t, s.b, "/products/42", "1019.25")
	s.sees(t, s.a, "/products/42", "1019.25")

	// The page of a category is made from entries of products.
	page := s.get(t, s.b, "/categories/10", "").body
	_, id, _ := strings.Cut(page, `"id":`)
	id, _, ok := strings.Cut(id, ",")
	if !ok {
		t.Fatalf("the page has no product: %s", page)
	}
	token := s.setPrice(t, s.a, id, "7777.5")
	if got := s.get(t, s.b, "/categories/10", token).body; !strings.Contains(got, "7777.5") {
		t.Errorf("the page with the token: got %s, want the price 7777.5", got)
	}
	s.sees(t, s.b, "/categories/10", "7777.5")

	// What nobody wrote through the shop at all.
	s.execute(t, `UPDATE categories SET name = 'Lamps, mostly' WHERE id = 10`)
	s.sees(t, s.a, "/categories/10", "Lamps, mostly")
	s.sees(t, s.b, "/categories/10", "Lamps, mostly")

	// That there is nothing is known too, and forgotten.
	if r := s.get(t, s.b, "/products/99999", ""); r.code != http.StatusNotFound {
		t.Errorf("GET of an unknown product: %d", r.code)
	}
	s.execute(t, `INSERT INTO products (id, name, price, slug, category_id) VALUES (99999, 'New', 1, 'new', 10)`)
	s.sees(t, s.b, "/products/99999", `"name":"New"`)

	if r := s.get(t, s.b, "/metrics", ""); !strings.Contains(r.body, `class="product"`) {
		t.Errorf("/metrics: %d, and no metric of class product", r.code)
	}
	if r := s.get(t, s.b, "/products/no-number", ""); r.code != http.StatusBadRequest {
		t.Errorf("GET of no number: %d", r.code)
	}
	r, err := request(t.Context(), http.MethodPut, s.b, "/products/42/price", `{}`, "")
	if err != nil || r.code != http.StatusBadRequest {
		t.Errorf("PUT without a price: %v, %d", err, r.code)
	}

	var printed strings.Builder
	if err := show(t.Context(), &printed, s); err != nil {
		t.Fatal(err)
	}
	if last := printed.String()[strings.LastIndex(printed.String(), "contains the write"):]; !strings.Contains(last, `"price":"9.99"`) {
		t.Errorf("the demonstration printed\n%s", printed.String())
	}
}
