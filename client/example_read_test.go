package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/client"
)

// The loader runs when the value is cached nowhere; the commit of a change is
// seen by the workers, so nobody has to say that it is old.
func ExampleClass_Get() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.TTL(time.Hour), client.Jitter(0.1))
	load := func(context.Context, *client.Load) (Product, error) {
		p, _ := db.read("product:1")
		return p, nil
	}

	p, err := products.Get(ctx, "product:1", load)
	fmt.Println(p.Name, err)
	ct.Wait() // for the fill, which no reader waits for
	p, err = products.Get(ctx, "product:1", load)
	fmt.Println(p.Name, err, "- reads of the database:", db.readTimes())

	db.name("product:1", "Bright lamp")
	ct.Invalidate("product:1") // what the workers do on the commit
	p, err = products.Get(ctx, "product:1", load)
	fmt.Println(p.Name, err)
	// Output:
	// Lamp <nil>
	// Lamp <nil> - reads of the database: 1
	// Bright lamp <nil>
}

func ExampleClass_Refresh() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadWith(func(_ context.Context, key string, _ *client.Load) (Product, error) {
		p, _ := db.read(key)
		return p, nil
	}))
	_, _ = products.Get(ctx, "product:1")
	ct.Wait()
	fmt.Println(db.readTimes())
	_, err := products.Refresh(ctx, "product:1") // whatever is cached
	fmt.Println(db.readTimes(), err)
	// Output:
	// 1
	// 1 <nil>
}

// Tags are what a value depends on besides its key.
func ExampleLoad_Tag() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadWith(func(_ context.Context, key string, l *client.Load) (Product, error) {
		p, _ := db.read(key)
		l.Tag("category:"+p.Category, "products")
		return p, nil
	}))
	read := func() int {
		for _, key := range []string{"product:1", "product:2", "product:3"} {
			_, _ = products.Get(ctx, key)
		}
		ct.Wait()
		return db.readTimes()
	}
	fmt.Println("cold:", read(), "then:", read())
	ct.Purge("category:lamps") // by a rule with tags
	fmt.Println("lamps changed:", read())
	// Output:
	// cold: 3 then: 0
	// lamps changed: 2
}

// A value made from other entries is forgotten with each of them: with those
// that it reads by themselves, with others by DependsOn.
func ExampleLoad() {
	ctx, db, banner := context.Background(), newTable(), "Sale!"
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadWith(func(_ context.Context, key string, _ *client.Load) (Product, error) {
		p, _ := db.read(key)
		return p, nil
	}))
	client.Entries[string](ct.Client, "banner") // known, so that its keys may be depended on
	pages := client.Entries[string](ct.Client, "page", client.LoadWith(func(ctx context.Context, _ string, l *client.Load) (string, error) {
		p, err := products.Get(ctx, "product:1")
		l.DependsOn("banner:top") // which is read by other means
		return banner + " " + p.Name, err
	}))
	page := func() {
		html, err := pages.Get(ctx, "page:home")
		ct.Wait()
		fmt.Println(html, err)
	}
	page()
	ct.Settle() // the workers know now that keys of both are depended on
	page()
	fmt.Println("cached:", ct.Stats().Classes["page"].Fills)
	db.name("product:1", "Bright lamp")
	ct.Invalidate("product:1")
	page()
	banner = "New!"
	ct.Invalidate("banner:top")
	page()
	// Output:
	// Sale! Lamp <nil>
	// Sale! Lamp <nil>
	// cached: 1
	// Sale! Bright lamp <nil>
	// New! Bright lamp <nil>
}

// What does not exist is asked for once, until it comes to exist.
func ExampleNegativeTTL() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product",
		client.NegativeTTL(time.Minute),
		client.LoadWith(func(_ context.Context, key string, _ *client.Load) (Product, error) {
			p, ok := db.read(key)
			if !ok {
				return p, client.ErrNotFound
			}
			return p, nil
		}))
	read := func() {
		p, err := products.Get(ctx, "product:9")
		ct.Wait()
		fmt.Printf("%q %v\n", p.Name, errors.Is(err, client.ErrNotFound))
	}
	read()
	read()
	fmt.Println("reads of the database:", db.readTimes())
	db.write("product:9", Product{ID: 9, Name: "Stool"})
	ct.Invalidate("product:9")
	read()
	// Output:
	// "" true
	// "" true
	// reads of the database: 1
	// "Stool" false
}

// A loader may decide for one value what the class decides for all.
func ExampleLoad_DoNotCache() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadWith(func(_ context.Context, key string, l *client.Load) (Product, error) {
		p, _ := db.read(key)
		switch p.Category {
		case "chairs":
			l.DoNotCache()
		case "lamps":
			l.TTL(time.Minute)
		}
		return p, nil
	}))
	for range 3 {
		_, _ = products.Get(ctx, "product:1")
		_, _ = products.Get(ctx, "product:3")
		ct.Wait()
	}
	fmt.Println("reads:", db.readTimes(), "refused:", ct.Stats().Classes["product"].Refused)
	// Output: reads: 4 refused: map[loader:3]
}

// lines is a codec for lists of words.
type lines struct{}

func (lines) ID() byte { return 200 }

func (lines) Append(dst []byte, v any) ([]byte, error) {
	return append(dst, strings.Join(v.([]string), "\n")...), nil
}

func (lines) Decode(data []byte, v any) error {
	*v.(*[]string) = strings.Split(string(data), "\n")
	return nil
}

func ExampleCodec() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	load := func(context.Context, *client.Load) ([]string, error) { return []string{"lamps", "chairs"}, nil }
	here := client.Entries[[]string](ct.Client, "menu", client.WithCodec(lines{}))
	_, _ = here.Get(ctx, "menu:top", load)
	ct.Wait()
	// Another process finds it in Redis.
	there := client.Entries[[]string](ct.Open(client.Options{}), "menu", client.WithCodec(lines{}))
	menu, err := there.Get(ctx, "menu:top")
	fmt.Println(menu, err)
	// Output: [lamps chairs] <nil>
}

// Account says of itself whether it makes sense.
type Account struct{ Balance *int }

// Validate errs on a value that an older program has written in another form.
func (a *Account) Validate() error {
	if a.Balance == nil {
		return errors.New("there is no balance")
	}
	return nil
}

func ExampleValidator() {
	ctx := context.Background()
	ct, end := newCache()
	defer end()
	old := client.Entries[json.RawMessage](ct.Client, "account")
	_, _ = old.Get(ctx, "account:1", func(context.Context, *client.Load) (json.RawMessage, error) {
		return json.RawMessage(`{"amount": 7}`), nil
	})
	ct.Wait()
	c := ct.Open(client.Options{})
	accounts := client.Entries[Account](c, "account")
	a, err := accounts.Get(ctx, "account:1", func(context.Context, *client.Load) (Account, error) {
		balance := 7
		return Account{Balance: &balance}, nil
	})
	fmt.Println(*a.Balance, err, "- undecodable:", c.Stats().Classes["account"].Undecodable > 0)
	// Output: 7 <nil> - undecodable: true
}

// Many keys at once: one look at Redis, and one load for all that are missing.
func ExampleClass_GetMany() {
	ctx, db := context.Background(), newTable()
	ct, end := newCache()
	defer end()
	products := client.Entries[Product](ct.Client, "product", client.LoadManyWith(
		func(_ context.Context, keys []string, l *client.BatchLoad) (map[string]Product, error) {
			fmt.Println("loading", len(keys))
			found := make(map[string]Product)
			for _, key := range keys { // in a program one statement: id = any($1)
				if p, ok := db.read(key); ok {
					found[key] = p
					l.Tag(key, "category:"+p.Category)
				}
			}
			return found, nil
		}))
	_, _ = products.Get(ctx, "product:1")
	ct.Wait()
	all, err := products.GetMany(ctx, []string{"product:1", "product:2", "product:3", "product:9"})
	fmt.Println(len(all), all["product:3"].Name, err)
	// Output:
	// loading 1
	// loading 3
	// 3 Chair <nil>
}
