package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// Security says how to log in to the brokers and whether to encrypt. The zero
// Security is plain text without a login.
type Security struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512, in any case; empty
	// means no login. LETHE_KAFKA_SASL_MECHANISM.
	Mechanism string
	// Username and Password are those of the mechanism. LETHE_KAFKA_USERNAME,
	// LETHE_KAFKA_PASSWORD.
	Username, Password string
	// TLS encrypts; naming any of the files does so too. LETHE_KAFKA_TLS.
	TLS bool
	// CAFile holds the certificates (PEM) that sign the brokers'; the system's
	// are used if it is empty. LETHE_KAFKA_CA_FILE.
	CAFile string
	// CertFile and KeyFile (PEM) are the client's own certificate, for brokers
	// that ask for one. LETHE_KAFKA_CERT_FILE, LETHE_KAFKA_KEY_FILE.
	CertFile, KeyFile string
}

// SecurityFromEnv reads the LETHE_KAFKA_* variables through lookup, which is
// os.LookupEnv outside tests.
func SecurityFromEnv(lookup func(string) (string, bool)) (Security, error) {
	get := func(name string) string {
		v, _ := lookup("LETHE_KAFKA_" + name)
		return v
	}
	s := Security{
		Mechanism: get("SASL_MECHANISM"), Username: get("USERNAME"), Password: get("PASSWORD"),
		CAFile: get("CA_FILE"), CertFile: get("CERT_FILE"), KeyFile: get("KEY_FILE"),
	}
	if v := get("TLS"); v != "" {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return s, fmt.Errorf("LETHE_KAFKA_TLS=%q: want true or false", v)
		}
		s.TLS = on
	}
	return s, s.Validate()
}

// Validate returns everything that is wrong with s, joined. It does not read
// the files.
func (s Security) Validate() error {
	var errs []error
	switch strings.ToLower(s.Mechanism) {
	case "":
		if s.Username != "" || s.Password != "" {
			errs = append(errs, errors.New("kafka username or password without a SASL mechanism: set LETHE_KAFKA_SASL_MECHANISM to plain, scram-sha-256 or scram-sha-512"))
		}
	case "plain", "scram-sha-256", "scram-sha-512":
		if s.Username == "" {
			errs = append(errs, fmt.Errorf("kafka SASL mechanism %s without a username: set LETHE_KAFKA_USERNAME", s.Mechanism))
		}
	default:
		errs = append(errs, fmt.Errorf("kafka SASL mechanism %q: want plain, scram-sha-256 or scram-sha-512", s.Mechanism))
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		errs = append(errs, errors.New("kafka client certificate: LETHE_KAFKA_CERT_FILE and LETHE_KAFKA_KEY_FILE need each other"))
	}
	return errors.Join(errs...)
}

func (s Security) mechanism() (sasl.Mechanism, error) {
	switch strings.ToLower(s.Mechanism) {
	case "plain":
		return plain.Mechanism{Username: s.Username, Password: s.Password}, nil
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, s.Username, s.Password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, s.Username, s.Password)
	}
	return nil, s.Validate()
}

func (s Security) tlsConfig() (*tls.Config, error) {
	if !s.TLS && s.CAFile == "" && s.CertFile == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka CA file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read kafka CA file %s: no certificate in it", s.CAFile)
		}
	}
	if s.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read kafka client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
