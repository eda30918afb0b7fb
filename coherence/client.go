package coherence

import (
	"context"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// OpenClient makes a bare client from a URL of the forms that Dial takes: a
// *redis.Client, or a *redis.ClusterClient where the server runs in cluster
// mode. It is for those who look at a cache that is not Lethe's: nothing is
// loaded into the server. The caller closes it.
func OpenClient(ctx context.Context, rawURL string) (redis.UniversalClient, error) {
	t, err := parseTarget(rawURL)
	if err != nil {
		return nil, err
	}
	o := Options{}.withDefaults()
	if t.kind == targetSingle {
		clustered, err := t.inClusterMode(ctx, o)
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
	if s.cluster != nil {
		return s.cluster, nil
	}
	return s.single.client, nil
}
