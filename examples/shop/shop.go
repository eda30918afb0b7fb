package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/client"
)

// product is the row as its page shows it.
type product struct {
	ID       int64  `json:"id"`
	Name     string `json:"name"`
	Price    string `json:"price"`
	Category int64  `json:"category"`
}

// categoryPage is made from a category and from the entries of its products.
type categoryPage struct {
	Name     string    `json:"name"`
	Products []product `json:"products"`
}

// shop has a class of entries for each class of rules.yaml that it reads. The
// rules say which change forgets which key or tag; nothing here invalidates.
type shop struct {
	pool       *pgxpool.Pool
	cache      *client.Client
	products   *client.Class[product]
	categories *client.Class[categoryPage]
}

func newShop(pool *pgxpool.Pool, cache *client.Client) *shop {
	s := &shop{pool: pool, cache: cache}
	s.products = client.Entries[product](cache, "product",
		client.KeyTemplate("product:{id}"),
		client.TTL(time.Hour), client.Jitter(0.1),
		client.NegativeTTL(time.Minute), // that there is no such product
		client.LoadWith(s.loadProduct))
	s.categories = client.Entries[categoryPage](cache, "category_page",
		client.KeyTemplate("category-page:{id}"),
		client.TTL(10*time.Minute),
		client.LoadWith(s.loadCategory))
	return s
}

// product and category read through the cache.
func (s *shop) product(ctx context.Context, id int64) (product, error) {
	key, err := s.products.Key(map[string]any{"id": id})
	if err != nil {
		return product{}, err
	}
	return s.products.Get(ctx, key)
}

func (s *shop) category(ctx context.Context, id int64) (categoryPage, error) {
	key, err := s.categories.Key(map[string]any{"id": id})
	if err != nil {
		return categoryPage{}, err
	}
	return s.categories.Get(ctx, key)
}

// loadProduct runs when a product is cached nowhere. The tag is the one that
// rules.yaml gives it: a change of the category forgets its products.
func (s *shop) loadProduct(ctx context.Context, key string, l *client.Load) (p product, err error) {
	err = l.QueryRow(ctx, `SELECT id, name, price::text, category_id FROM products WHERE id = $1`, idOf(key)).
		Scan(&p.ID, &p.Name, &p.Price, &p.Category)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, client.ErrNotFound
	}
	l.Tag(fmt.Sprintf("category:%d", p.Category))
	return p, err
}

// loadCategory reads the products from the cache: the page depends on each of
// them, and is forgotten with the first that changes.
func (s *shop) loadCategory(ctx context.Context, key string, l *client.Load) (page categoryPage, err error) {
	var ids []int64
	err = l.QueryRow(ctx, `SELECT c.name, ARRAY(SELECT id FROM products WHERE category_id = c.id ORDER BY id LIMIT 5)
		FROM categories AS c WHERE c.id = $1`, idOf(key)).Scan(&page.Name, &ids)
	if errors.Is(err, pgx.ErrNoRows) {
		return page, client.ErrNotFound
	}
	if err != nil {
		return page, err
	}
	l.Tag("category:" + idOf(key))
	for _, id := range ids {
		p, err := s.product(ctx, id)
		if errors.Is(err, client.ErrNotFound) {
			continue // deleted since; the page is forgotten for it
		}
		if err != nil {
			return page, err
		}
		page.Products = append(page.Products, p)
	}
	return page, nil
}

// idOf is the last part of a key.
func idOf(key string) string { return key[strings.LastIndexByte(key, ':')+1:] }

// setPrice writes, and returns the token of the write: reads under it, here and
// in every other instance, contain the new price.
func (s *shop) setPrice(ctx context.Context, id int64, price string) (token string, err error) {
	done, err := s.pool.Exec(ctx, `UPDATE products SET price = $2::text::numeric WHERE id = $1`, id, price)
	if err != nil {
		return "", err
	}
	if done.RowsAffected() == 0 {
		return "", client.ErrNotFound
	}
	return s.cache.Wrote(ctx, s.pool)
}
