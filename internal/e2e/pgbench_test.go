package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/audit"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

const pgbenchRules = `version: 1
namespace: bank
entries:
  branch:
    key: branch:{bid}
    ttl: 1d
    load: {sql: "SELECT bid, bbalance FROM public.pgbench_branches WHERE bid = ANY(@bid)"}
  teller:
    key: teller:{tid}
    ttl: 1d
    load: {sql: "SELECT tid, tbalance FROM public.pgbench_tellers WHERE tid = ANY(@tid)"}
  account:
    key: account:{aid}
    ttl: 1d
    load: {sql: "SELECT aid, abalance FROM public.pgbench_accounts WHERE aid = ANY(@aid)"}
  history:
    key: history:{tid}
    mode: plain
    ttl: 1d
    load: {sql: "SELECT tid, count(*) AS n, sum(delta) AS total FROM public.pgbench_history WHERE tid = ANY(@tid) GROUP BY tid"}
rules:
  - {name: branch, table: public.pgbench_branches, on: [update, delete], keys: ["branch:{bid}"]}
  - {name: teller, table: public.pgbench_tellers, on: [update, delete], keys: ["teller:{tid}"]}
  - {name: account, table: public.pgbench_accounts, on: [update, delete], keys: ["account:{aid}"]}
  - {name: history, table: public.pgbench_history, on: [insert], keys: ["history:{tid}"]}
`

// The size of pgbench's schema at scale 1.
const (
	accounts = 100_000
	tellers  = 10
)

// pgbenchSeconds is how long each run lasts; LETHE_TEST_PGBENCH_SECONDS is for
// those who have no minute.
func pgbenchSeconds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("LETHE_TEST_PGBENCH_SECONDS")
	if text == "" {
		return 60
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("LETHE_TEST_PGBENCH_SECONDS=%q: want seconds", text)
	}
	return n
}

// TestPgbench runs pgbench's own schema and script with four clients, while
// readers fill the cache: no entry is stale afterwards, and none is gone whose
// row was not touched, also when lethe is killed ten times meanwhile.
func TestPgbench(t *testing.T) {
	for _, c := range []struct {
		name  string
		kafka bool
		kills int
	}{
		{"direct", false, 0}, {"kafka", true, 0}, {"direct killed", false, 10}, {"kafka killed", true, 10},
	} {
		t.Run(c.name, func(t *testing.T) { testPgbench(t, c.kafka, c.kills) })
	}
}

func testPgbench(t *testing.T, kafka bool, kills int) {
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	tool, err := pg.Tool("pgbench")
	if err != nil {
		t.Skipf("left out: pgbench is not here: %v", err)
	}
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	database := pg.URL("postgres")
	runTool(t, tool, "-i", "-q", "-s", "1", database)
	env := settingsFor(t, database, pgbenchRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	if kafka {
		env["LETHE_KAFKA_BROKERS"] = strings.Join(harness.Kafka(t).Brokers(), ",")
		env["LETHE_KAFKA_TOPIC"] = fmt.Sprintf("pgbench.%d.%d", kills, time.Now().UnixNano())
		env["LETHE_KAFKA_GROUP"] = env["LETHE_KAFKA_TOPIC"]
	}
	program := start(t, env, "run")
	program.ready()
	bank := openBank(t, database, rdb.URL(), env["LETHE_RULES"])
	bank.fillAll()

	seconds := pgbenchSeconds(t)
	done := make(chan struct{})
	killed := make(chan struct{})
	over := sync.OnceFunc(func() { close(killed); <-done })
	defer over()
	go func() {
		defer close(done)
		runTool(t, tool, "-n", "-c", "4", "-j", "2", "-T", strconv.Itoa(seconds), database)
		for { // a slow machine kills late, and under load all the same
			select {
			case <-killed:
				return
			default:
				runTool(t, tool, "-n", "-c", "4", "-j", "2", "-T", "2", database)
			}
		}
	}()
	stopReaders := bank.read()
	program = killOften(t, program, env, kills, time.Duration(seconds)*time.Second)
	over()
	stopReaders()
	program.ready()

	report := bank.compare()
	if !report.OK() {
		t.Errorf("of %d entries %d are stale and %d unsettled: %+v", report.Checked, report.Stale, report.Unsettled, report.Findings[:min(3, len(report.Findings))])
	}
	if report.Checked < accounts/10 {
		t.Errorf("only %d entries were compared", report.Checked)
	}
	touched, lost := bank.lostUntouched()
	if touched == 0 {
		t.Error("pgbench touched no account")
	}
	if len(lost) > 0 {
		t.Errorf("%d entries are gone whose rows were not touched, such as %v", len(lost), lost[:min(5, len(lost))])
	}
	t.Logf("%d entries compared, %d accounts touched, %d readers' fills, %d of them refused",
		report.Checked, touched, bank.fills, bank.refused)
	program.stop()
}

// killOften kills the program at even intervals, each time starting it again at
// once.
func killOften(t *testing.T, program *lethe, env map[string]string, kills int, span time.Duration) *lethe {
	if kills == 0 {
		return program
	}
	ticker := time.NewTicker(span / time.Duration(kills+1))
	defer ticker.Stop()
	for range kills {
		<-ticker.C
		program.kill()
		program = start(t, env, "run")
	}
	return program
}

func runTool(t *testing.T, path string, args ...string) {
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", path, args, err, out)
	}
}

// bank is the cache of pgbench's schema.
type bank struct {
	t              *testing.T
	ctx            context.Context
	database       string
	store          *coherence.Store
	redis          *redis.Client
	loader         *warmer.Loader
	warmer         *warmer.Warmer
	plan           *rules.Plan
	mu             sync.Mutex
	fills, refused int
}

func openBank(t *testing.T, database, redisURL, rulesPath string) *bank {
	t.Helper()
	set, err := rules.Load(rulesPath)
	if err != nil {
		t.Fatal(err)
	}
	b := &bank{t: t, ctx: t.Context(), database: database}
	if b.plan, err = set.Compile(); err != nil {
		t.Fatal(err)
	}
	if b.store, err = coherence.Dial(b.ctx, redisURL, coherence.Options{Namespace: "bank"}); err != nil {
		t.Fatal(err)
	}
	if b.loader, err = warmer.OpenLoader(b.ctx, warmer.LoaderConfig{URL: database}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.loader.Close()
		if err := errors.Join(b.redis.Close(), b.store.Close()); err != nil {
			t.Error(err)
		}
	})
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	b.redis = redis.NewClient(options)
	b.warmer, err = warmer.New(warmer.Config{Store: b.store, Loader: b.loader, Rules: func() *rules.Plan { return b.plan }})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func names(class string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("bank:%s:%d", class, i+1)
	}
	return list
}

func (b *bank) fillAll() {
	b.t.Helper()
	for class, n := range map[string]int{"branch": 1, "teller": tellers, "account": accounts} {
		result, err := b.warmer.Fill(b.ctx, class, names(class, n), warmer.Options{})
		if err != nil {
			b.t.Fatal(err)
		}
		if result.Stored != n {
			b.t.Fatalf("filled %d of %d entries of %s: %+v", result.Stored, n, class, result)
		}
	}
}

// read fills random entries until stop is called, as slow and fast readers of
// an application do. Redis and Postgres are there all the time, so that every
// error is one.
func (b *bank) read() (stop func()) {
	ctx, cancel := context.WithCancel(b.ctx)
	var wait sync.WaitGroup
	for i := range 2 {
		wait.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			for ctx.Err() == nil {
				class, list := "account", make([]string, 20)
				for j := range list {
					list[j] = fmt.Sprintf("bank:account:%d", 1+random.IntN(accounts))
				}
				switch random.IntN(3) {
				case 0:
					class, list = "teller", names("teller", tellers)
				case 1:
					class, list = "history", names("history", tellers)
				}
				result, err := b.warmer.Fill(ctx, class, list, warmer.Options{})
				if errors.Is(err, warmer.ErrOtherRules) { // a reload changes them
					result.Refused = map[string]int{"rules": len(list)}
				} else if err != nil && ctx.Err() == nil {
					b.t.Errorf("fill: %v", err)
					return
				}
				b.mu.Lock()
				b.fills += len(list)
				for _, n := range result.Refused {
					b.refused += n
				}
				b.mu.Unlock()
			}
		})
	}
	return func() { cancel(); wait.Wait() }
}

func (b *bank) compare() *audit.Report {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Minute)
	defer cancel()
	report, err := audit.Compare(ctx, audit.Config{Store: b.store, Cache: audit.OnRedis(b.redis), Loader: b.loader, Plan: b.plan})
	if err != nil {
		b.t.Fatal(err)
	}
	return report
}

// lostUntouched returns how many accounts pgbench has changed, and the entries
// of others that are gone.
func (b *bank) lostUntouched() (touched int, lost []string) {
	b.t.Helper()
	conn, err := pgx.Connect(b.ctx, b.database)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(b.ctx))
	rows, err := conn.Query(b.ctx, `SELECT DISTINCT aid FROM pgbench_history`)
	if err != nil {
		b.t.Fatal(err)
	}
	changed, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		b.t.Fatal(err)
	}
	isChanged := make(map[int]bool, len(changed))
	for _, aid := range changed {
		isChanged[aid] = true
	}
	present := b.present()
	for aid := 1; aid <= accounts; aid++ {
		name := fmt.Sprintf("bank:account:%d", aid)
		if !isChanged[aid] && !present[name] {
			lost = append(lost, name)
		}
	}
	return len(changed), lost
}

// present are the accounts' entries that a reader would be served.
func (b *bank) present() map[string]bool {
	b.t.Helper()
	control, err := b.store.Control(b.ctx, "account")
	if err != nil {
		b.t.Fatal(err)
	}
	generation := control.Known("account").Generation
	found := map[string]bool{}
	list := names("account", accounts)
	for start := 0; start < len(list); start += 1000 {
		values, err := b.redis.MGet(b.ctx, list[start:start+1000]...).Result()
		if err != nil {
			b.t.Fatal(err)
		}
		for i, v := range values {
			text, ok := v.(string)
			if !ok {
				continue
			}
			h, _, err := coherence.Parse([]byte(text))
			if err == nil && h.State == coherence.StateValue && h.Generation == generation {
				found[list[start+i]] = true
			}
		}
	}
	return found
}
