package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/stream/kafka"
)

// settings are what flags, LETHE_* environment variables and lethe.yaml set,
// in that order of precedence. The zero value is not usable: addFlags fills in
// the defaults.
type settings struct {
	PostgresURL string
	RedisURL    string
	Rules       []string
	Slot        string
	Publication string
	Listen      string
	AdminToken  string
	Log         string
	LogLevel    string

	KafkaBrokers    []string
	KafkaTopic      string
	KafkaGroup      string
	KafkaTLS        bool
	KafkaCAFile     string
	KafkaCertFile   string
	KafkaKeyFile    string
	KafkaMechanism  string
	KafkaUsername   string
	KafkaPassword   string
	KafkaPartitions int

	// WALBudget and PruneRate are settings of `run`.
	WALBudget int64
	Warm      warmSettings
	PruneRate int

	config string
}

// addFlags declares every setting on fs. A setting is the flag --redis-url,
// the variable LETHE_REDIS_URL and the line redis_url: of lethe.yaml.
func (s *settings) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.config, "config", "lethe.yaml", "file of settings; it may be absent")
	fs.StringVar(&s.PostgresURL, "postgres-url", "", "primary to follow, postgres://user@host/database; the role needs REPLICATION")
	fs.StringVar(&s.RedisURL, "redis-url", "redis://127.0.0.1:6379/0", "redis://, rediss://, several addresses with commas for a cluster, or redis+sentinel://")
	fs.StringSliceVar(&s.Rules, "rules", []string{"rules.yaml"}, "files of rules")
	fs.StringVar(&s.Slot, "slot", "lethe", "replication slot")
	fs.StringVar(&s.Publication, "publication", "lethe", "publication, kept in step with the rules")
	fs.StringVar(&s.Listen, "listen", "127.0.0.1:7401", "address of /metrics, /healthz and /readyz; off serves none")
	fs.StringVar(&s.AdminToken, "admin-token", "", "bearer token of the admin API")
	fs.StringVar(&s.Log, "log", "text", "text or json")
	fs.StringVar(&s.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringSliceVar(&s.KafkaBrokers, "kafka-brokers", nil, "host:port of Kafka brokers; none means direct, without a broker")
	fs.StringVar(&s.KafkaTopic, "kafka-topic", "lethe.changes", "topic of changes, created if absent")
	fs.StringVar(&s.KafkaGroup, "kafka-group", "", "consumer group of the workers of one Redis (default lethe-<namespace>)")
	fs.IntVar(&s.KafkaPartitions, "kafka-partitions", 12, "partitions of a topic that is created")
	fs.BoolVar(&s.KafkaTLS, "kafka-tls", false, "speak TLS to the brokers")
	fs.StringVar(&s.KafkaCAFile, "kafka-ca-file", "", "certificates that sign the brokers' (PEM)")
	fs.StringVar(&s.KafkaCertFile, "kafka-cert-file", "", "client certificate (PEM)")
	fs.StringVar(&s.KafkaKeyFile, "kafka-key-file", "", "key of the client certificate (PEM)")
	fs.StringVar(&s.KafkaMechanism, "kafka-sasl-mechanism", "", "plain, scram-sha-256 or scram-sha-512")
	fs.StringVar(&s.KafkaUsername, "kafka-username", "", "SASL user")
	fs.StringVar(&s.KafkaPassword, "kafka-password", "", "SASL password; better in the environment than on the command line")
}

const envPrefix = "LETHE_"

// envName is the environment variable of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// load fills what no flag has set from the environment, and what that does not
// set from the file. known reports whether any command has a setting of that
// name: one file serves all of them.
func (s *settings) load(fs *pflag.FlagSet, environ []string, known func(flag string) bool) error {
	env := map[string]string{}
	for _, e := range environ {
		if k, v, ok := strings.Cut(e, "="); ok && strings.HasPrefix(k, envPrefix) {
			env[k] = v
		}
	}
	if v, ok := env[envName("config")]; ok && !fs.Changed("config") {
		if err := fs.Set("config", v); err != nil {
			return usagef("%s: %w", envName("config"), err)
		}
	}
	file, err := readSettingsFile(s.config, fs.Changed("config"))
	if err != nil {
		return err
	}
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || notInFile[f.Name] {
			return
		}
		name := envName(f.Name)
		value, from := env[name], name
		if value == "" { // an empty variable is an unset one, as compose files write them
			value, from = file[name], s.config
		}
		if value == "" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: --%s: %w", from, f.Name, err))
		}
	})
	for name := range file {
		if flag := flagName(name); notInFile[flag] || !known(flag) {
			errs = append(errs, fmt.Errorf("%s: unknown setting %q", s.config, strings.ToLower(strings.TrimPrefix(name, envPrefix))))
		}
	}
	if len(errs) > 0 {
		return usagef("%w", errors.Join(errs...))
	}
	return nil
}

// notInFile are flags that are no settings.
var notInFile = map[string]bool{"config": true, "help": true, "version": true}

func flagName(env string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, envPrefix), "_", "-"))
}

// readSettingsFile returns the file's settings under the names of their
// environment variables. Lists become comma-separated text.
func readSettingsFile(path string, must bool) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil, nil
	}
	if err != nil {
		return nil, usagef("read settings: %w", err)
	}
	var raw map[string]any
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	out := make(map[string]string, len(raw))
	for k, v := range raw {
		name := strings.ToUpper(strings.ReplaceAll(k, "-", "_"))
		if !strings.HasPrefix(name, envPrefix) {
			name = envPrefix + name
		}
		if list, ok := v.([]any); ok {
			parts := make([]string, len(list))
			for i := range list {
				parts[i] = fmt.Sprint(list[i])
			}
			v = strings.Join(parts, ",")
		}
		if v != nil {
			out[name] = fmt.Sprint(v)
		}
	}
	return out, nil
}

var identifier = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// validate reports everything that is wrong with the settings that a command
// needs, at once.
func (s *settings) validate(needPostgres bool) error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", envName(flag), fmt.Sprintf(format, args...)))
	}
	if needPostgres && s.PostgresURL == "" {
		bad("postgres-url", "not set; it names the database to follow, such as postgres://lethe@127.0.0.1:5432/shop")
	}
	if s.PostgresURL != "" {
		if err := checkPostgresURL(s.PostgresURL); err != nil {
			bad("postgres-url", "%v", err)
		}
	}
	if err := coherence.CheckURL(s.RedisURL); err != nil {
		bad("redis-url", "%v", err)
	}
	if !identifier.MatchString(s.Slot) {
		bad("slot", "%q: want 1 to 63 lower-case letters, digits and underscores", s.Slot)
	}
	if !identifier.MatchString(s.Publication) || len(s.Publication) > 55 {
		bad("publication", "%q: want 1 to 55 lower-case letters, digits and underscores", s.Publication)
	}
	if !slices.Contains([]string{"text", "json"}, s.Log) {
		bad("log", "%q: want text or json", s.Log)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, s.LogLevel) {
		bad("log-level", "%q: want debug, info, warn or error", s.LogLevel)
	}
	if s.Listen == "off" { // an empty variable is an unset one, so that a word is needed
		s.Listen = ""
	}
	if s.Listen != "" {
		if _, _, err := net.SplitHostPort(s.Listen); err != nil {
			bad("listen", "%q: want host:port", s.Listen)
		}
	}
	for _, b := range s.KafkaBrokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			bad("kafka-brokers", "%q: want host:port", b)
		}
	}
	if !s.direct() && len(errs) == 0 {
		if err := s.kafka("", nil).Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	if s.KafkaPartitions < 1 || s.KafkaPartitions > 1024 {
		bad("kafka-partitions", "%d: want 1 to 1024", s.KafkaPartitions)
	}
	if len(errs) > 0 {
		return usagef("%w", errors.Join(errs...))
	}
	return nil
}

// keyValue is what the keyword/value form of a connection string begins with.
var keyValue = regexp.MustCompile(`^\s*[a-z_]+\s*=`)

// checkPostgresURL rejects what the driver would not understand, or would take
// for something else than was meant. Its errors never repeat the text, which
// may hold a password: the driver leaves out those that it recognises, and a
// mistake is often why it does not.
func checkPostgresURL(raw string) error {
	if scheme, _, ok := strings.Cut(raw, "://"); ok && !keyValue.MatchString(raw) {
		if scheme != "postgres" && scheme != "postgresql" {
			return errors.New("want postgres://user@host/database, or host=... dbname=...; this begins with another scheme")
		}
		if _, err := url.Parse(raw); err != nil {
			return errors.New("not a URL; what is not a letter or digit in a password must be percent-encoded")
		}
	} else if !keyValue.MatchString(raw) {
		return errors.New("want postgres://user@host/database, or host=... dbname=...")
	}
	_, err := pgxpool.ParseConfig(raw)
	if err == nil {
		return nil
	}
	// "cannot parse `text`: what is wrong (why)"
	text := err.Error()
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		text = text[i+len("`: "):]
	} else {
		text = "not understood"
	}
	return errors.New(text)
}

// direct reports whether the reader and the worker share this process, with no
// broker between them.
func (s *settings) direct() bool { return len(s.KafkaBrokers) == 0 }

func (s *settings) transport() string {
	if s.direct() {
		return "direct"
	}
	return "kafka"
}

// kafka is the log's configuration; namespace names the group by default.
func (s *settings) kafka(namespace string, log *slog.Logger) kafka.Config {
	group := s.KafkaGroup
	if group == "" {
		group = "lethe-" + namespace
	}
	return kafka.Config{
		Brokers: s.KafkaBrokers, Topic: s.KafkaTopic, Group: group, Partitions: s.KafkaPartitions, Logger: log,
		Security: kafka.Security{
			Mechanism: s.KafkaMechanism, Username: s.KafkaUsername, Password: s.KafkaPassword,
			TLS: s.KafkaTLS, CAFile: s.KafkaCAFile, CertFile: s.KafkaCertFile, KeyFile: s.KafkaKeyFile,
		},
	}
}
