package coherence

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Dial connects to Redis or Valkey. The forms of the URL are
//
//	redis://[user:password@]host:port[/db]               one node
//	rediss://...                                         the same with TLS
//	unix:///path/to/socket[?db=n]                        one node
//	redis://[user:password@]host:port,host:port,...      a Cluster
//	redis+cluster://[user:password@]host:port            a Cluster, one address known
//	redis+sentinel://[user:password@]host:port,host:port/master-name[/db]
//
// and rediss+cluster, rediss+sentinel. A single address of a server that runs
// in cluster mode is taken for a Cluster. The user and password of the
// sentinel form are those of the master; ?sentinel_user= and
// ?sentinel_password= are the sentinels'.
//
// It fails if a master can not be reached within ctx. Errors do not repeat the
// password.
func Dial(ctx context.Context, rawURL string, o Options) (*Store, error) {
	t, err := parseTarget(rawURL)
	if err != nil {
		return nil, err
	}
	if t.kind == targetSingle {
		clustered, err := t.inClusterMode(ctx, o.withDefaults())
		if err != nil {
			return nil, fmt.Errorf("connect to redis %s: %w", strings.Join(t.addrs, ","), err)
		}
		if clustered {
			t.kind = targetCluster
		}
	}
	s, err := newStore(o, t.kind == targetCluster)
	if err != nil {
		return nil, err
	}
	t.connect(s)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to redis %s: %w", strings.Join(t.addrs, ","), err), s.Close())
	}
	return s, nil
}

type targetKind int

const (
	targetSingle targetKind = iota
	targetCluster
	targetSentinel
)

// target is a parsed URL.
type target struct {
	kind                           targetKind
	network                        string
	addrs                          []string
	master                         string
	user, password                 string
	sentinelUser, sentinelPassword string
	db                             int
	tls                            *tls.Config
}

func parseTarget(raw string) (*target, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, errors.New("parse redis URL: no scheme: want redis://host:port")
	}
	t := &target{network: "tcp"}
	transport, kind, _ := strings.Cut(scheme, "+")
	switch transport {
	case "redis":
	case "rediss":
		t.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	case "unix":
		t.network = "unix"
	default:
		return nil, fmt.Errorf("parse redis URL: scheme %q: want redis, rediss, unix, redis+cluster or redis+sentinel", scheme)
	}
	rest, query, _ := strings.Cut(rest, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, errors.New("parse redis URL: the part after ? is malformed")
	}
	t.sentinelUser, t.sentinelPassword = q.Get("sentinel_user"), q.Get("sentinel_password")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		user, password, _ := strings.Cut(rest[:at], ":")
		u, err1 := url.PathUnescape(user)
		p, err2 := url.PathUnescape(password)
		if err1 != nil || err2 != nil {
			return nil, errors.New("parse redis URL: user or password is not percent-encoded")
		}
		t.user, t.password, rest = u, p, rest[at+1:]
	}
	if t.network == "unix" {
		t.addrs = []string{rest}
		return t, t.setDB(q.Get("db"))
	}
	hosts, path, _ := strings.Cut(rest, "/")
	port := "6379"
	if kind == "sentinel" {
		port = "26379"
	}
	for addr := range strings.SplitSeq(hosts, ",") {
		if addr == "" {
			return nil, errors.New("parse redis URL: empty address")
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
		}
		t.addrs = append(t.addrs, addr)
	}
	switch kind {
	case "":
		if len(t.addrs) > 1 {
			t.kind = targetCluster
		}
	case "cluster":
		t.kind = targetCluster
	case "sentinel":
		t.kind = targetSentinel
		t.master, path, _ = strings.Cut(path, "/")
		if t.master == "" {
			return nil, errors.New("parse redis URL: redis+sentinel needs a master: redis+sentinel://host:port/master-name")
		}
	default:
		return nil, fmt.Errorf("parse redis URL: scheme %q: want redis, rediss, unix, redis+cluster or redis+sentinel", scheme)
	}
	if db := q.Get("db"); db != "" {
		path = db
	}
	if t.kind == targetCluster && path != "" && path != "0" {
		return nil, errors.New("parse redis URL: a cluster has database 0 only")
	}
	return t, t.setDB(path)
}

func (t *target) setDB(text string) (err error) {
	if text == "" {
		return nil
	}
	if t.db, err = strconv.Atoi(text); err != nil || t.db < 0 {
		return fmt.Errorf("parse redis URL: database %q is not a number", text)
	}
	return nil
}

// options are those of every connection that Lethe makes.
func (t *target) options(o Options) *redis.Options {
	return &redis.Options{
		Network: t.network, Addr: t.addrs[0], Username: t.user, Password: t.password, DB: t.db, TLSConfig: t.tls,
		// RESP2: the Store subscribes to nothing, and every supported server
		// speaks it.
		Protocol: 2, DisableIdentity: true,
		// The library would repeat single commands of a pair; see do.
		MaxRetries: -1, ContextTimeoutEnabled: true,
		DialTimeout: o.DialTimeout, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
		DialerRetries: 1,
		PoolSize:      o.PoolSize, PipelinePoolSize: o.PoolSize, PoolTimeout: o.ReadTimeout,
		ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10,
		MaintNotificationsConfig: noMaintenance(),
	}
}

// noMaintenance turns off what only one vendor's servers announce; it would
// keep a goroutine for each client.
func noMaintenance() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// inClusterMode asks a single address whether it is part of a cluster. A
// server that does not say is not.
func (t *target) inClusterMode(ctx context.Context, o Options) (bool, error) {
	c := redis.NewClient(t.options(o))
	defer c.Close()
	if err := c.Ping(ctx).Err(); err != nil {
		return false, err
	}
	info, err := c.Info(ctx, "cluster").Result()
	if err != nil && !isServerError(err) {
		return false, err
	}
	return infoField(info, "cluster_enabled") == "1", nil
}

// connect makes the client. Every new connection is asked for its run_id
// before its first command.
func (t *target) connect(s *Store) {
	base := t.options(s.opts)
	switch t.kind {
	case targetSingle:
		s.single = s.node(base.Addr)
		base.OnConnect = s.onConnect(s.single)
		s.single.client = redis.NewClient(base)
		s.owned = s.single.client
	case targetSentinel:
		s.single = s.node(t.master)
		s.single.client = redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: t.master, SentinelAddrs: t.addrs,
			SentinelUsername: t.sentinelUser, SentinelPassword: t.sentinelPassword,
			Username: t.user, Password: t.password, DB: t.db, TLSConfig: t.tls,
			Protocol: 2, DisableIdentity: true, MaxRetries: -1, ContextTimeoutEnabled: true,
			DialTimeout: base.DialTimeout, ReadTimeout: base.ReadTimeout, WriteTimeout: base.WriteTimeout,
			DialerRetries: 1, PoolSize: base.PoolSize, PipelinePoolSize: base.PoolSize, PoolTimeout: base.PoolTimeout,
			ReadBufferSize: base.ReadBufferSize, WriteBufferSize: base.WriteBufferSize,
			OnConnect: s.onConnect(s.single),
		})
		s.owned = s.single.client
	case targetCluster:
		s.cluster = redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: t.addrs, Username: t.user, Password: t.password, TLSConfig: t.tls,
			Protocol: 2, DisableIdentity: true, MaxRetries: -1, MaxRedirects: 3, ContextTimeoutEnabled: true,
			DialTimeout: base.DialTimeout, ReadTimeout: base.ReadTimeout, WriteTimeout: base.WriteTimeout,
			DialerRetries: 1, PoolSize: base.PoolSize, PipelinePoolSize: base.PoolSize, PoolTimeout: base.PoolTimeout,
			ReadBufferSize: base.ReadBufferSize, WriteBufferSize: base.WriteBufferSize,
			MaintNotificationsConfig: base.MaintNotificationsConfig,
			NewClient: func(opt *redis.Options) *redis.Client {
				opt.OnConnect = s.onConnect(s.node(opt.Addr))
				return redis.NewClient(opt)
			},
		})
		s.owned = s.cluster
	}
}
