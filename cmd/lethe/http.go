package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readiness answers /readyz: ready only when every reason not to be is gone.
type readiness struct {
	Ready bool `json:"ready"`
	// Reasons say what readiness waits for, one sentence each.
	Reasons []string `json:"reasons,omitempty"`
	// Details name what is not as it should be without being a reason.
	Details map[string]any `json:"details,omitempty"`
}

// httpServer serves metrics and health on one address.
type httpServer struct {
	server *http.Server
	done   chan error
	addr   net.Addr
}

// listen starts the server; it fails at once if the address can not be had.
func listen(addr string, registry *prometheus.Registry, ready func(context.Context) readiness) (*httpServer, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &exitError{code: exitFailed, err: fmt.Errorf("listen for metrics and health: %w", err),
			hint: "choose a free address with LETHE_LISTEN, or set it to off to serve none"}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive", "version": buildVersion()})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state, code := ready(r.Context()), http.StatusOK
		if !state.Ready {
			code = http.StatusServiceUnavailable
		}
		writeJSON(w, code, state)
	})
	s := &httpServer{
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second},
		done:   make(chan error, 1), addr: listener.Addr(),
	}
	go func() { s.done <- s.server.Serve(listener) }()
	return s, nil
}

// close stops the server and waits for it, at most a second for what it is
// answering.
func (s *httpServer) close() error {
	if s == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		_ = s.server.Close()
	}
	if err := <-s.done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // the reader has gone; there is nobody to tell
}
