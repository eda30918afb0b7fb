package main

import (
	"math/rand/v2"
	"strconv"
	"time"
)

// product is the value of all measurements: about 500 bytes of JSON, below the
// length from which values are compressed. All caches hold pointers to it, so
// that none has to copy it.
type product struct {
	ID          int64     `json:"id"`
	Category    int64     `json:"category"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Price       float64   `json:"price"`
	Stock       int       `json:"stock"`
	Labels      []string  `json:"labels"`
	Updated     time.Time `json:"updated"`
}

func newProduct(id int64) *product {
	return &product{
		ID: id, Category: id % 100, Name: "product " + strconv.FormatInt(id, 10),
		Description: "A pot that keeps what is poured into it warm for as long as one may want to drink of it, and the hand that holds it cool. " +
			"It is made of one piece, it has no seam that could leak, and it stands where it is put. Two litres, in seven colours, with lid.",
		Price: 19.99, Stock: 42, Labels: []string{"kitchen", "steel", "new"}, Updated: time.Unix(1_700_000_000, 0).UTC(),
	}
}

// products is how many there are: few enough for every cache to keep them all.
const products = 10_000

// keys are their names in the order in which they are read: some far more often
// than others (Zipf, exponent 1.01), as in otter's own benchmarks.
func keys(prefix string) []string {
	all := make([]string, products)
	for i := range all {
		all[i] = prefix + "product:" + strconv.Itoa(i)
	}
	// The popular ones lie anywhere, the same for all subjects.
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	zipf := rand.NewZipf(rand.New(rand.NewPCG(3, 4)), 1.01, 1, products-1)
	out := make([]string, 1<<16)
	for i := range out {
		out[i] = all[zipf.Uint64()]
	}
	return out
}
