package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// network is the social network of the benchmark BG, as far as it takes part:
// members and who is whose friend. Every write raises the version of the two
// members that it concerns, in its own transaction, so that the version that a
// value carries says which writes are in it.
type network struct {
	pool    *pgxpool.Pool
	members int
	popular []float64 // cumulative, by member
}

var schema = []string{
	`CREATE TABLE members (id bigint PRIMARY KEY, name text NOT NULL, version bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50)`,
	// status: 1 invited, 2 friends
	`CREATE TABLE friendships (low bigint, high bigint, status smallint NOT NULL, PRIMARY KEY (low, high))`,
	`CREATE INDEX ON friendships (high)`,
	`INSERT INTO members SELECT i, 'member ' || i FROM generate_series(0, $1::int - 1) i`,
	`INSERT INTO friendships SELECT id, id + d, 2 FROM members, generate_series(1, 5) d WHERE id + d < (SELECT count(*) FROM members)`,
}

// rulesYAML is all that Lethe has to know of it.
const rulesYAML = `version: 1
namespace: iq
entries:
  profile: {key: "profile:{id}"}
  friends: {key: "friends:{id}"}
  pending: {key: "pending:{id}"}
rules:
  - name: a member changes
    table: public.members
    keys: [ "profile:{id}", "friends:{id}", "pending:{id}" ]
`

// skew is that of BG in the published runs: the mean of a Zipfian distribution
// of exponent 0.73, under which a third of the members have two thirds of the
// requests.
const skew = 0.73

func newNetwork(ctx context.Context, pool *pgxpool.Pool, members int) (*network, error) {
	n := &network{pool: pool, members: members}
	n.weigh()
	for _, sql := range schema {
		var args []any
		if strings.Contains(sql, "$1") {
			args = append(args, members)
		}
		if _, err := pool.Exec(ctx, sql, args...); err != nil {
			return nil, fmt.Errorf("make the social network: %w", err)
		}
	}
	return n, nil
}

// weigh fixes how popular each member is.
func (n *network) weigh() {
	n.popular = make([]float64, n.members)
	sum := 0.0
	for i := range n.popular {
		sum += math.Pow(float64(i+1), -skew)
		n.popular[i] = sum
	}
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }

// draw picks a member, the popular ones more often.
func (n *network) draw(r *rand.Rand) int64 {
	return int64(sort.SearchFloat64s(n.popular, r.Float64()*n.popular[n.members-1]))
}

// kind is one of the pages that are cached, and the class of its entries.
type kind string

const (
	profile kind = "profile"
	friends kind = "friends"
	pending kind = "pending"
)

var kinds = [...]kind{profile, friends, pending}

func (k kind) key(member int64) string { return fmt.Sprintf("%s:%d", k, member) }

// page is a cached value.
type page struct {
	Member  int64   `json:"member"`
	Version int64   `json:"version"`
	Name    string  `json:"name"`
	Friends int     `json:"friends"`
	Pending int     `json:"pending"`
	List    []int64 `json:"list,omitempty"`
}

const profileSQL = `SELECT m.id, m.version, m.name,
	(SELECT count(*) FROM friendships WHERE (low = m.id OR high = m.id) AND status = 2),
	(SELECT count(*) FROM friendships WHERE (low = m.id OR high = m.id) AND status = 1)
	FROM members m WHERE m.id = $1`

const listSQL = `SELECT m.id, m.version, m.name,
	ARRAY(SELECT CASE WHEN low = m.id THEN high ELSE low END FROM friendships WHERE (low = m.id OR high = m.id) AND status = $2 ORDER BY 1)
	FROM members m WHERE m.id = $1`

// page reads one from the database, in one statement: all of it is of one
// version.
func (n *network) page(ctx context.Context, k kind, member int64) (p page, err error) {
	switch k {
	case profile:
		err = n.pool.QueryRow(ctx, profileSQL, member).Scan(&p.Member, &p.Version, &p.Name, &p.Friends, &p.Pending)
	case friends:
		err = n.pool.QueryRow(ctx, listSQL, member, 2).Scan(&p.Member, &p.Version, &p.Name, &p.List)
		p.Friends = len(p.List)
	default:
		err = n.pool.QueryRow(ctx, listSQL, member, 1).Scan(&p.Member, &p.Version, &p.Name, &p.List)
		p.Pending = len(p.List)
	}
	return p, err
}

// change is what one write did: the versions that two members have since.
type change struct {
	members  [2]int64
	versions [2]int64
}

// keys are those of everything that shows one of the two members.
func (c *change) keys() []string {
	var out []string
	for _, m := range c.members {
		for _, k := range kinds {
			out = append(out, k.key(m))
		}
	}
	return out
}

// write invites somebody, accepts, or ends a friendship, whichever is next
// between these two. before runs in the transaction, right before its COMMIT,
// and after once COMMIT has returned, on the same connection.
func (n *network) write(ctx context.Context, a, b int64, before, after func(*pgxpool.Conn, *change) error) (*change, error) {
	c := &change{members: [2]int64{min(a, b), max(a, b)}}
	conn, err := n.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // nothing, after COMMIT
	var batch pgx.Batch
	for i := range c.members { // in this order, or two writers wait for each other
		batch.Queue(`UPDATE members SET version = version + 1 WHERE id = $1 RETURNING version`, c.members[i]).
			QueryRow(func(row pgx.Row) error { return row.Scan(&c.versions[i]) })
	}
	batch.Queue(`INSERT INTO friendships VALUES ($1, $2, 1) ON CONFLICT (low, high) DO UPDATE SET status = friendships.status + 1`, c.members[0], c.members[1])
	batch.Queue(`DELETE FROM friendships WHERE low = $1 AND high = $2 AND status > 2`, c.members[0], c.members[1])
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	if err := before(conn, c); err != nil {
		return nil, err
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	return c, after(conn, c)
}

// versions are those that the database has.
func (n *network) versions(ctx context.Context) ([]int64, error) {
	out := make([]int64, n.members)
	rows, err := n.pool.Query(ctx, `SELECT id, version FROM members`)
	if err != nil {
		return nil, err
	}
	var id, version int64
	_, err = pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		if id < 0 || id >= int64(n.members) {
			return errors.New("there is a member too many")
		}
		out[id] = version
		return nil
	})
	return out, err
}
