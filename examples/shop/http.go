package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lethe-cache/lethe/client"
)

func (s *shop) routes() http.Handler {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(s.cache.Collector())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products/{id}", show(s.product))
	mux.HandleFunc("GET /categories/{id}", show(s.category))
	mux.HandleFunc("PUT /products/{id}/price", s.putPrice)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	return s.readYourWrites(mux)
}

// afterName is the cookie, for browsers, and the header, for other services,
// that carry the token of a write.
const afterName = "Lethe-After"

// readYourWrites has every read of a request contain the write whose token the
// request brings.
func (s *shop) readYourWrites(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get(afterName)
		if cookie, err := r.Cookie(afterName); token == "" && err == nil {
			token = cookie.Value
		}
		if token != "" {
			r = r.WithContext(s.cache.After(r.Context(), token))
		}
		next.ServeHTTP(w, r)
	})
}

// show answers with what is read for the id in the path.
func show[T any](read func(context.Context, int64) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		if err != nil {
			http.Error(w, "the id is not a number", http.StatusBadRequest)
			return
		}
		v, err := read(r.Context(), id)
		if err != nil {
			fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func (s *shop) putPrice(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Price json.Number `json:"price"`
	}
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err == nil {
		err = json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&body)
	}
	if err != nil || body.Price == "" {
		http.Error(w, `want PUT /products/42/price with {"price": 9.99}`, http.StatusBadRequest)
		return
	}
	token, err := s.setPrice(r.Context(), id, body.Price.String())
	if err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set(afterName, token)
	// The cache catches up within milliseconds; a minute is plenty.
	http.SetCookie(w, &http.Cookie{Name: afterName, Value: token, Path: "/", MaxAge: 60, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	w.WriteHeader(http.StatusNoContent)
}

// fail says what went wrong, without the details.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, client.ErrNotFound):
		http.NotFound(w, r)
	case errors.Is(err, client.ErrOverloaded):
		w.Header().Set("Retry-After", "1")
		http.Error(w, "try again", http.StatusServiceUnavailable)
	default:
		slog.ErrorContext(r.Context(), "request failed", "path", r.URL.Path, "err", err)
		http.Error(w, "try again", http.StatusInternalServerError)
	}
}
