package history

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/client"
)

// plan is what an agent is to do, and where.
type plan struct {
	ID        int
	Seed      uint64
	Namespace string
	// Redis is the address that the client uses. Primary is the database that
	// is written to and that loaders read; Database is the client's own, a
	// standby if Standby says so, and may be none.
	Redis, Primary, Database string
	Standby                  bool
	L1Bytes                  int64
	Workers                  int
}

// The rows. Loaders read the first ones from the primary, by a library of their
// own, and the others through the load.
const (
	rowCount    = 12
	strictCount = 6
	groupCount  = 4
	// phase is how long the rows of a quarter are written to; a row then has
	// peace for three times as long, in which a stale value would show.
	phase = 1500 * time.Millisecond
)

func strict(row int) bool { return row < strictCount }
func group(row int) int   { return row % groupCount }

// item is a row as it is cached.
type item struct {
	N    int64
	Load Load
}

// list is all rows of a group; page is two rows, read through the cache.
type list struct {
	N    map[int]int64
	Load Load
}

type page struct {
	Parts [2]*item // nil: there is no such row
	Load  Load
}

func partsOf(row int) [2]int { return [2]int{row, (row + strictCount) % rowCount} }

// missing says that a loader found nothing, and when it looked.
type missing struct{ load Load }

func (m *missing) Error() string { return "no such row" }
func (m *missing) Unwrap() error { return client.ErrNotFound }

// agent is one client and what uses it.
type agent struct {
	plan
	c        *client.Client
	primary  *pgxpool.Pool
	items    *client.Class[item]
	lists    *client.Class[list]
	pages    *client.Class[page]
	mu       sync.Mutex
	out      *json.Encoder
	random   *rand.Rand
	stopping context.Context
	atEnd    []func()
}

// report is a line of an agent.
type report struct {
	Op *Op `json:",omitempty"`
	// Failed is an operation that may not fail.
	Failed string `json:",omitempty"`
	// Done answers a command.
	Done  string        `json:",omitempty"`
	Live  bool          `json:",omitempty"`
	Stats *client.Stats `json:",omitempty"`
}

func (a *agent) say(r report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Encode(r) // nobody listens any more: the end is near
}

// run does what a plan says until in ends, and obeys the commands that it reads
// there: "stop" ends reading and writing, "state" asks for the state, "read"
// reads everything once.
func run(p plan, in io.Reader, out io.Writer) error {
	ctx := context.Background()
	a := &agent{plan: p, out: json.NewEncoder(out), random: newRandom(p.Seed, uint64(p.ID))}
	defer a.close()
	if err := a.open(ctx); err != nil {
		return fmt.Errorf("agent %d: %w", p.ID, err)
	}
	var cancel context.CancelFunc
	a.stopping, cancel = context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for i := range p.Workers {
		random := newRandom(p.Seed, uint64(100*p.ID+i+1))
		work.Go(func() { a.work(ctx, random) })
		work.Go(func() { a.watch(ctx, newRandom(p.Seed, uint64(100*p.ID+50+i))) })
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		switch cmd := lines.Text(); cmd {
		case "stop":
			cancel()
			work.Wait()
			a.say(report{Done: cmd})
		case "state":
			s := a.c.Stats()
			a.say(report{Done: cmd, Live: s.State == client.Live, Stats: &s})
		case "read":
			a.readAll(ctx)
			s := a.c.Stats()
			a.say(report{Done: cmd, Stats: &s})
		default:
			return fmt.Errorf("agent %d: command %q", p.ID, cmd)
		}
	}
	return nil
}

func (a *agent) open(ctx context.Context) (err error) {
	if a.primary, err = pgxpool.New(ctx, a.Primary+"&pool_max_conns=8"); err != nil {
		return err
	}
	rdb := redis.NewClient(&redis.Options{Addr: a.Redis})
	a.atEnd = append(a.atEnd, func() { _ = rdb.Close() }, a.primary.Close)
	o := client.Options{
		Redis: rdb, Namespace: a.Namespace, L1Bytes: a.L1Bytes,
		OpenTimeout: 30 * time.Second,
	}
	if a.Database != "" {
		if o.Database, err = pgxpool.New(ctx, a.Database+"&pool_max_conns=8"); err != nil {
			return err
		}
		a.atEnd = append(a.atEnd, o.Database.Close)
	}
	if a.c, err = client.Open(ctx, o); err != nil {
		return err
	}
	a.atEnd = append(a.atEnd, func() { _ = a.c.Close() })
	a.items = client.Entries[item](a.c, "item", client.LoadWith(a.loadItem), client.NegativeTTL(time.Hour))
	a.lists = client.Entries[list](a.c, "list", client.LoadWith(a.loadList))
	a.pages = client.Entries[page](a.c, "page", client.LoadWith(a.loadPage))
	return nil
}

func (a *agent) close() {
	for _, f := range slices.Backward(a.atEnd) {
		f()
	}
}

// dawdle is a loader that thinks about what it has read.
func (a *agent) dawdle(ctx context.Context) {
	a.mu.Lock()
	f, d := a.random.Float64(), a.random.Float64()
	a.mu.Unlock()
	switch {
	case f < 0.6:
	case f < 0.97:
		pause(ctx, time.Duration(d*float64(40*time.Millisecond)))
	default:
		pause(ctx, time.Duration(d*float64(1200*time.Millisecond)))
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (a *agent) loading(through bool) Load {
	return Load{Client: a.ID, Start: Now(), Standby: through && a.Standby}
}

func (a *agent) loadItem(ctx context.Context, key string, l *client.Load) (v item, err error) {
	var row int
	if _, err := fmt.Sscanf(key, "item:%d", &row); err != nil {
		return v, err
	}
	const sql = "SELECT n FROM item WHERE id = $1"
	through := !strict(row) && a.Database != ""
	v.Load = a.loading(through)
	if through {
		err = l.QueryRow(ctx, sql, row).Scan(&v.N)
	} else {
		err = a.primary.QueryRow(ctx, sql, row).Scan(&v.N)
	}
	a.dawdle(ctx)
	v.Load.End = Now()
	if errors.Is(err, pgx.ErrNoRows) {
		return v, &missing{v.Load}
	}
	return v, err
}

func (a *agent) loadList(ctx context.Context, key string, l *client.Load) (v list, err error) {
	const sql = "SELECT id, n FROM item WHERE grp = $1"
	g := strings.TrimPrefix(key, "list:")
	through := a.Database != ""
	v.Load, v.N = a.loading(through), map[int]int64{}
	var rows pgx.Rows
	if through {
		rows, err = l.Query(ctx, sql, g)
	} else {
		rows, err = a.primary.Query(ctx, sql, g)
	}
	if err != nil {
		return v, err
	}
	var (
		id int
		n  int64
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error { v.N[id] = n; return nil })
	l.Tag("grp:"+g, "lists")
	a.dawdle(ctx)
	v.Load.End = Now()
	return v, err
}

func (a *agent) loadPage(ctx context.Context, key string, l *client.Load) (v page, err error) {
	var row int
	if _, err := fmt.Sscanf(key, "page:%d", &row); err != nil {
		return v, err
	}
	v.Load = a.loading(false)
	for i, r := range partsOf(row) {
		part, err := a.items.Get(ctx, itemKey(r))
		var m *missing
		switch {
		case err == nil:
			v.Parts[i] = &part
		case errors.As(err, &m):
			v.Parts[i] = &item{N: -1, Load: m.load}
		case !errors.Is(err, client.ErrNotFound):
			return v, err
		}
	}
	l.Tag("pages")
	a.dawdle(ctx)
	v.Load.End = Now()
	return v, nil
}

func itemKey(row int) string { return fmt.Sprintf("item:%d", row) }

// work reads and writes until the agent stops.
func (a *agent) work(ctx context.Context, random *rand.Rand) {
	for a.stopping.Err() == nil {
		row := min(random.IntN(rowCount), random.IntN(rowCount))
		switch f := random.IntN(100); {
		case f < 50:
			a.get(ctx, row, "get", false)
		case f < 60:
			a.page(ctx, row, false)
		case f < 70:
			a.list(ctx, group(row), false)
		case f < 80:
			a.get(ctx, row, "after", true)
		case f < 83:
			a.page(ctx, row, true)
		case f < 86:
			a.list(ctx, group(row), true)
		case f < 97:
			a.write(ctx, random)
		case f < 98:
			a.put(ctx, row)
			a.refresh(ctx, row)
		case f < 99:
			a.check("invalidate", a.c.Invalidate(ctx, itemKey(row)))
		default:
			tags := client.Any("pages")
			if random.IntN(2) == 0 {
				tags = client.All("lists", fmt.Sprintf("grp:%d", group(row)))
			}
			a.check("invalidate tags", a.c.InvalidateTags(ctx, tags))
		}
		pause(a.stopping, time.Duration(random.IntN(40))*time.Millisecond)
	}
}

// watch reads again and again: the first to see what is stale.
func (a *agent) watch(ctx context.Context, random *rand.Rand) {
	for a.stopping.Err() == nil {
		row := min(random.IntN(rowCount), random.IntN(rowCount))
		switch f := random.IntN(10); {
		case f < 7:
			a.get(ctx, row, "get", false)
		case f < 8:
			a.page(ctx, row, false)
		default:
			a.list(ctx, group(row), false)
		}
		pause(a.stopping, time.Duration(random.IntN(20))*time.Millisecond)
	}
}

// check complains of an error of an invalidation that goes through the database;
// the others need Redis, and may say that it is away.
func (a *agent) check(what string, err error) {
	if err != nil && a.Database != "" && !a.Standby {
		a.say(report{Failed: fmt.Sprintf("client %d: %s: %v", a.ID, what, err)})
	}
}

// failed reports an operation that may not fail.
func (a *agent) failed(what string, err error) {
	if errors.Is(err, client.ErrBehind) && a.Standby {
		return // the standby has not replayed the write that the token names
	}
	a.say(report{Failed: fmt.Sprintf("client %d: %s: %v", a.ID, what, err)})
}

// token asks for one, for everything that was committed so far.
func (a *agent) token(ctx context.Context, o *Op) context.Context {
	token, err := a.c.Wrote(ctx, a.primary)
	if err != nil {
		a.failed("token", err)
	}
	o.After = true
	return a.c.After(ctx, token)
}

func (a *agent) get(ctx context.Context, row int, kind string, after bool) {
	o := Op{Client: a.ID, Kind: kind, Row: row, Start: Now()}
	if after {
		ctx = a.token(ctx, &o)
	}
	v, err := a.items.Get(ctx, itemKey(row))
	a.found(&o, &v, err)
}

// refresh reads past the cache, and fills it.
func (a *agent) refresh(ctx context.Context, row int) {
	o := Op{Client: a.ID, Kind: "refresh", Row: row, Start: Now()}
	v, err := a.items.Refresh(a.token(ctx, &o), itemKey(row))
	a.found(&o, &v, err)
}

// put caches what it has read by itself.
func (a *agent) put(ctx context.Context, row int) {
	at := a.c.Moment()
	v := item{Load: a.loading(false)}
	err := a.primary.QueryRow(ctx, "SELECT n FROM item WHERE id = $1", row).Scan(&v.N)
	if errors.Is(err, pgx.ErrNoRows) {
		return
	}
	a.dawdle(ctx)
	v.Load.End = Now()
	if err == nil {
		_, err = a.items.Put(ctx, at, itemKey(row), v)
	}
	if err != nil {
		a.failed("put", err)
	}
}

func (a *agent) found(o *Op, v *item, err error) {
	o.End = Now()
	var m *missing
	switch {
	case errors.As(err, &m):
		o.Absent, o.Load = true, &m.load
	case errors.Is(err, client.ErrNotFound):
		o.Absent = true
	case err != nil:
		a.failed(fmt.Sprintf("%s row %d", o.Kind, o.Row), err)
		return
	default:
		o.N, o.Load = v.N, &v.Load
	}
	a.say(report{Op: o})
}

func (a *agent) list(ctx context.Context, g int, after bool) {
	o := Op{Client: a.ID, Kind: "list", Start: Now()}
	if after {
		ctx = a.token(ctx, &o)
	}
	v, err := a.lists.Get(ctx, fmt.Sprintf("list:%d", g))
	o.End, o.Load = Now(), &v.Load
	if err != nil {
		a.failed(fmt.Sprintf("list of group %d", g), err)
		return
	}
	for row := range rowCount {
		if group(row) == g {
			part := o
			n, there := v.N[row]
			part.Row, part.N, part.Absent = row, n, !there
			a.say(report{Op: &part})
		}
	}
}

func (a *agent) page(ctx context.Context, row int, after bool) {
	o := Op{Client: a.ID, Kind: "page", Start: Now()}
	if after {
		ctx = a.token(ctx, &o)
	}
	v, err := a.pages.Get(ctx, fmt.Sprintf("page:%d", row))
	o.End, o.Outer = Now(), &v.Load
	if err != nil {
		a.failed(fmt.Sprintf("page %d", row), err)
		return
	}
	for i, r := range partsOf(row) {
		part := o
		part.Row = r
		switch p := v.Parts[i]; {
		case p == nil:
			part.Absent = true
		case p.N < 0:
			part.Absent, part.Load = true, &p.Load
		default:
			part.N, part.Load = p.N, &p.Load
		}
		a.say(report{Op: &part})
	}
}

// write changes one row or two in one transaction, and reads one of them.
func (a *agent) write(ctx context.Context, random *rand.Rand) {
	active := int(time.Duration(Now())/phase) % groupCount
	rows := []int{active + groupCount*random.IntN(rowCount/groupCount)}
	if random.IntN(5) == 0 {
		rows = append(rows, (rows[0]+groupCount)%rowCount)
		rows[0], rows[1] = min(rows[0], rows[1]), max(rows[0], rows[1]) // no deadlock
	}
	o := Op{Client: a.ID, Kind: "write", Write: true, Absent: random.IntN(8) == 0, Start: Now()}
	n := make([]int64, len(rows))
	change := func(ctx context.Context, tx pgx.Tx) error {
		for i, row := range rows {
			if err := tx.QueryRow(ctx, "UPDATE version SET n = n + 1 WHERE id = $1 RETURNING n", row).Scan(&n[i]); err != nil {
				return err
			}
			sql, args := "INSERT INTO item VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE SET n = EXCLUDED.n", []any{row, group(row), n[i]}
			if o.Absent {
				sql, args = "DELETE FROM item WHERE id = $1", args[:1]
			}
			if _, err := tx.Exec(ctx, sql, args...); err != nil {
				return err
			}
		}
		return nil
	}
	var err error
	if a.Database != "" && !a.Standby && random.IntN(2) == 0 {
		o.Kind = "update"
		_, err = a.items.Update(ctx, itemKey(rows[0]), func(ctx context.Context, tx pgx.Tx) (v item, err error) { return v, change(ctx, tx) })
	} else {
		err = pgx.BeginFunc(ctx, a.primary, func(tx pgx.Tx) error { return change(ctx, tx) })
	}
	o.End = Now()
	var position string
	if err == nil {
		err = a.primary.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&position)
	}
	lsn, err2 := parseLSN(position)
	if err != nil || err2 != nil {
		a.failed("write", errors.Join(err, err2))
		return
	}
	o.LSN = lsn
	for i, row := range rows {
		part := o
		part.Row, part.N = row, n[i]
		a.say(report{Op: &part})
	}
	a.get(ctx, rows[0], "own", true)
}

// parseLSN turns an insert position into one that every commit that returned
// before starts below.
func parseLSN(text string) (uint64, error) {
	lsn, err := change.ParseLSN(text)
	return uint64(change.Bound(lsn)), err
}

// readAll reads everything that there is, twice: what the first reading loads
// is no proof of what was cached, but what it finds cached is.
func (a *agent) readAll(ctx context.Context) {
	for range 2 {
		for row := range rowCount {
			a.get(ctx, row, "last", false)
			a.page(ctx, row, false)
		}
		for g := range groupCount {
			a.list(ctx, g, false)
		}
	}
}

// planVariable makes this test binary an agent in a process of its own.
const planVariable = "LETHE_HISTORY_PLAN"

// agentMain is the program of an agent. It ends when its standard input does.
func agentMain(text string) {
	var p plan
	err := json.Unmarshal([]byte(text), &p)
	if err == nil {
		err = run(p, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
