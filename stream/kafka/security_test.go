package kafka_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// certificate makes one that signs itself, for 127.0.0.1, and the files of it.
func certificate(t *testing.T) (pair tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err = tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair, certFile, keyFile
}

// passes sends some batches through a cluster.
func passes(t *testing.T, cfg kafka.Config) {
	t.Helper()
	w := writer(t, cfg)
	seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	feed.Append(t, w, 10)
	seen.UntilBatches(t, 10)
	closeWriter(t, w)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
}

func TestSASL(t *testing.T) {
	t.Parallel()
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			c := fake(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "lethe", "secret"))
			cfg := settings(t, c.ListenAddrs())
			cfg.Security = kafka.Security{Mechanism: strings.ToLower(mechanism), Username: "lethe", Password: "secret"}
			passes(t, cfg)
			cfg.Security.Password = "wrong"
			// A real broker answers with SASL_AUTHENTICATION_FAILED, which ends
			// NewWriter at once; this one hangs up, which might be a restart.
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := kafka.NewWriter(ctx, cfg); err == nil {
				t.Error("wrong password: no error")
			} else if strings.Contains(err.Error(), "wrong") {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	pair, certFile, keyFile := certificate(t)
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	c := fake(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}))
	cfg := settings(t, c.ListenAddrs())
	cfg.Security = kafka.Security{TLS: true, CAFile: certFile, CertFile: certFile, KeyFile: keyFile}
	passes(t, cfg)
	cfg.Security.CAFile = keyFile
	if _, err := kafka.NewConsumer(cfg); err == nil || !strings.Contains(err.Error(), "no certificate in it") {
		t.Errorf("a CA file without certificates: %v", err)
	}
}

func TestSecurityFromEnv(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"LETHE_KAFKA_SASL_MECHANISM": "scram-sha-512", "LETHE_KAFKA_USERNAME": "u", "LETHE_KAFKA_PASSWORD": "p", "LETHE_KAFKA_TLS": "true",
		"LETHE_KAFKA_CA_FILE": "ca", "LETHE_KAFKA_CERT_FILE": "c", "LETHE_KAFKA_KEY_FILE": "k",
	}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	got, err := kafka.SecurityFromEnv(lookup)
	want := kafka.Security{Mechanism: "scram-sha-512", Username: "u", Password: "p", TLS: true, CAFile: "ca", CertFile: "c", KeyFile: "k"}
	if err != nil || got != want {
		t.Errorf("SecurityFromEnv = %+v, %v, want %+v", got, err, want)
	}
	env["LETHE_KAFKA_TLS"] = "perhaps"
	if _, err := kafka.SecurityFromEnv(lookup); err == nil || !strings.Contains(err.Error(), `LETHE_KAFKA_TLS="perhaps"`) {
		t.Errorf("LETHE_KAFKA_TLS=perhaps: %v", err)
	}
}

func TestConfigNamesEveryMistake(t *testing.T) {
	t.Parallel()
	err := kafka.Config{
		Brokers: []string{"nowhere"}, Topic: "a b", Replication: -1, Partitions: -1, Compression: "best",
		Security: kafka.Security{Mechanism: "kerberos", CertFile: "c"},
	}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`broker "nowhere"`, `topic "a b"`, "replication -1", "partitions -1", `compression "best"`, `mechanism "kerberos"`, "need each other"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named in: %v", want, err)
		}
	}
	for _, s := range []kafka.Security{{Username: "u"}, {Mechanism: "plain"}} {
		if err := s.Validate(); err == nil {
			t.Errorf("%+v: no error", s)
		}
	}
	if err := (kafka.Config{Brokers: []string{"a:1"}}.WithDefaults()).Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	if _, err := kafka.NewConsumer(kafka.Config{Brokers: []string{"a:1"}}); err == nil {
		t.Error("a consumer without a group: no error")
	}
}

func TestCompression(t *testing.T) {
	t.Parallel()
	c := fake(t)
	for _, name := range []string{"gzip", "snappy", "lz4", "zstd"} {
		cfg := settings(t, c.ListenAddrs())
		cfg.Compression = name
		passes(t, cfg)
	}
}
