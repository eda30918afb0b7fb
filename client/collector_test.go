package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
)

// samples are the metrics of a collector by "name{labels}"; histograms are
// their count and sum.
func samples(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := strings.TrimPrefix(f.GetName(), "lethe_") + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.GetHistogram() != nil:
				out[name+" count"] = float64(m.GetHistogram().GetSampleCount())
				out[name+" sum"] = m.GetHistogram().GetSampleSum()
				for _, b := range m.GetHistogram().GetBucket() {
					out[fmt.Sprintf("%s le %v", name, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			case m.GetCounter() != nil:
				out[name] = m.GetCounter().GetValue()
			default:
				out[name] = m.GetGauge().GetValue()
			}
		}
	}
	return out
}

func wantSamples(t *testing.T, got map[string]float64, want map[string]float64) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if v, ok := got[name]; !ok || v != want[name] {
			t.Errorf("%s: got %v (there: %v), want %v", name, v, ok, want[name])
		}
	}
}

// TestCollectorLint: the names are what Prometheus expects.
func TestCollectorLint(t *testing.T) {
	t.Parallel()
	s := filled(t)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(collector{stats: func() Stats { return s }})
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// notMetrics are the fields of Stats that are no metric, and why.
var notMetrics = map[string]string{
	"Stats.State":        "a series for each state",
	"Stats.RedisErrors":  "the sum of the kinds",
	"Stats.Watermark":    "text",
	"Stats.L1Entries":    "the sum of the classes",
	"Stats.L1Bytes":      "the sum of the classes",
	"ClassStats.Loads":   "the count of lethe_load_seconds",
	"Histogram.Bounds":   "the buckets",
	"Stats.Classes":      "",
	"ClassStats.Refused": "",
}

// filled are Stats in which each number is another one.
func filled(t *testing.T) Stats {
	t.Helper()
	next := uint64(1000)
	var fill func(name string, v reflect.Value)
	fill = func(name string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Type().Name()+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Map:
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			if key.Kind() == reflect.String {
				key.SetString("word")
			}
			fill(name, value)
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(key, value)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(name, v.Index(0))
		case reflect.Int, reflect.Int64:
			next++
			v.SetInt(int64(next))
			if v.Type() == reflect.TypeFor[time.Duration]() {
				v.SetInt(int64(next) * int64(time.Second))
			}
		case reflect.Uint64:
			next++
			v.SetUint(next)
		case reflect.Float64:
			next++
			v.SetFloat(float64(next))
		case reflect.String, reflect.Uint8:
		default:
			t.Fatalf("%s is a %v: this test does not know how to fill it", name, v.Kind())
		}
	}
	var s Stats
	fill("Stats", reflect.ValueOf(&s).Elem())
	return s
}

// TestCollectorHasAllOfStats: each number of Stats is the value of a metric, or
// named above with the reason why not.
func TestCollectorHasAllOfStats(t *testing.T) {
	t.Parallel()
	s := filled(t)
	values := map[float64]bool{}
	for _, v := range samples(t, collector{stats: func() Stats { return s }}) {
		values[v] = true
	}
	var check func(name string, v reflect.Value)
	check = func(name string, v reflect.Value) {
		if reason := notMetrics[name]; reason != "" {
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				check(v.Type().Name()+"."+v.Type().Field(i).Name, v.Field(i))
			}
		case reflect.Map:
			for i := v.MapRange(); i.Next(); {
				check(name, i.Value())
			}
		case reflect.Slice:
			check(name, v.Index(0))
		case reflect.Int, reflect.Int64:
			n := float64(v.Int())
			if v.Type() == reflect.TypeFor[time.Duration]() {
				n = time.Duration(v.Int()).Seconds()
			}
			if !values[n] {
				t.Errorf("%s is no metric", name)
			}
		case reflect.Uint64:
			if !values[float64(v.Uint())] {
				t.Errorf("%s is no metric", name)
			}
		}
	}
	check("Stats", reflect.ValueOf(s))
}

// TestCollector drives each event and looks at its metric.
func TestCollector(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	text := Entries[string](c, "text", MaxValue(64))
	w.live(c)
	before := samples(t, c.Collector())

	w.get(t.Context(), e, "item:1") // a load
	w.get(t.Context(), e, "item:1") // L1
	w.get(t.Context(), e, "item:1")
	c.l1.clear()
	w.get(t.Context(), e, "item:1") // L2
	broken := errors.New("broken")
	for _, err := range []error{broken, ErrNotFound} {
		if _, got := e.Get(t.Context(), "item:2", func(context.Context, *Load) (int64, error) { return 0, err }); !errors.Is(got, err) {
			t.Fatalf("Get: got %v, want %v", got, err)
		}
		c.fills.Wait()
	}
	if _, err := text.Get(t.Context(), "text:1"); !errors.Is(err, ErrNoLoader) {
		t.Fatalf("Get: %v", err)
	}
	if _, err := text.Get(t.Context(), "text:2", func(context.Context, *Load) (string, error) { return strings.Repeat("x", 100), nil }); err != nil {
		t.Fatal(err)
	}
	c.fills.Wait()
	w.must(rawSet(w, "text:3", w.name("item:1"))) // an entry of another type
	if _, err := text.Get(t.Context(), "text:3", func(context.Context, *Load) (string, error) { return "y", nil }); err != nil {
		t.Fatal(err)
	}
	c.fills.Wait()
	c.bump("a test")
	w.live(c)

	got := samples(t, c.Collector())
	wantSamples(t, got, map[string]float64{
		"cache_requests_total{class=item,layer=load,result=miss}":     2,
		"cache_requests_total{class=item,layer=l1,result=hit}":        2,
		"cache_requests_total{class=item,layer=l2,result=hit}":        1,
		"cache_requests_total{class=item,layer=stale,result=hit}":     0,
		"cache_requests_total{class=item,layer=default,result=error}": 0,
		"cache_requests_total{class=item,layer=none,result=error}":    1,
		"cache_requests_total{class=text,layer=none,result=error}":    1,
		"cache_read_errors_total{class=item,kind=loader}":             1,
		"cache_read_errors_total{class=text,kind=no_loader}":          1,
		"cache_read_seconds{class=item,layer=l2} count":               1,
		"cache_read_seconds{class=item,layer=load} count":             2,
		"cache_misses_total{class=item}":                              3,
		"cache_undecodable_total{class=text}":                         2, // by GET, and by BEGIN
		"cache_oversize_total{class=text}":                            1,
		"fills_total{class=item,reason=,result=stored}":               1,
		"fills_total{class=item,reason=negative,result=refused}":      1,
		"fills_total{class=text,reason=oversize,result=refused}":      1,
		"load_seconds{class=item} count":                              3,
		"load_errors_total{class=item}":                               1,
		"l1_epochs_total{}":                                           before["l1_epochs_total{}"] + 1,
		"client_state{state=live}":                                    1,
		"client_state{state=blind}":                                   0,
		"client_state_changes_total{}":                                before["client_state_changes_total{}"] + 2,
		"client_flights{}":                                            0,
	})
	for name, want := range map[string]float64{"redis_pool_hits_total{}": 1, "redis_pool_misses_total{}": 1, "redis_pool_connections{}": 1} {
		if got[name] < want {
			t.Errorf("%s: got %v, want at least %v", name, got[name], want)
		}
	}
}

// TestCollectorOfTheHerd: reads that share a load, and loads that are turned
// away.
func TestCollectorOfTheHerd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item", MaxLoads(1))
	w.live(c)
	release := make(chan struct{})
	block := func(context.Context, *Load) (int64, error) { <-release; return 1, nil }
	var readers sync.WaitGroup
	read := func(key string) {
		readers.Go(func() {
			if _, err := e.Get(w.ctx(), key, block); err != nil {
				t.Errorf("Get(%q): %v", key, err)
			}
		})
	}
	for i := range 9 { // one runs, eight wait
		read(fmt.Sprintf("item:%d", i))
	}
	harness.Eventually(t, 10*time.Second, harness.True("all of them are under way", func() bool { return c.Stats().Classes["item"].Misses == 9 }))
	read("item:0")
	harness.Eventually(t, 10*time.Second, func() error {
		if _, err := e.Get(w.ctx(), "item:10", func(context.Context, *Load) (int64, error) { return 0, errors.New("it was let") }); !errors.Is(err, ErrOverloaded) {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	harness.Eventually(t, 10*time.Second, harness.True("one has joined", func() bool { return c.Stats().Classes["item"].Coalesced == 1 }))
	got := samples(t, c.Collector())
	wantSamples(t, got, map[string]float64{
		"cache_coalesced_total{class=item}":                   1,
		"cache_read_errors_total{class=item,kind=overloaded}": got["cache_overloaded_total{class=item}"],
		"load_errors_total{class=item}":                       0,
	})
	if got["cache_overloaded_total{class=item}"] < 1 {
		t.Errorf("overloaded: got %v, want at least 1", got["cache_overloaded_total{class=item}"])
	}
	harness.Eventually(t, 10*time.Second, func() error { // those that were turned away are on their way out
		if n := samples(t, c.Collector())["client_flights{}"]; n != 9 {
			return fmt.Errorf("%v flights, want 9", n)
		}
		return nil
	})
	close(release)
	readers.Wait()
	c.fills.Wait()
	wantSamples(t, samples(t, c.Collector()), map[string]float64{"cache_requests_total{class=item,layer=load,result=miss}": 10})
}

func rawSet(w *world, key, from string) error {
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	raw, err := rdb.Get(w.ctx(), from).Result()
	if err != nil {
		return err
	}
	return rdb.Set(w.ctx(), w.name(key), raw, time.Minute).Err()
}

// TestCollectorOfTrouble: what is counted when Redis does not do what it is
// asked, and when a message is lost.
func TestCollectorOfTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c, StaleWhileNotLive(time.Hour))
	w.get(t.Context(), e, "item:1")
	before := c.Stats()
	c.data.(*redis.Client).AddHook(failing{errors.New("cut")})
	w.get(t.Context(), e, "item:2")
	s := c.Stats()
	if got, want := s.RedisErrorKinds["network"]-before.RedisErrorKinds["network"], s.RedisErrors-before.RedisErrors; got == 0 || got != want {
		t.Errorf("network errors: got %d, want all %d", got, want)
	}
	for range breakerFailures {
		w.get(t.Context(), e, "item:3")
	}
	got := samples(t, c.Collector())
	if got["redis_skipped_total{}"] == 0 || got["redis_errors_total{kind=network}"] < breakerFailures {
		t.Errorf("skipped %v, network errors %v", got["redis_skipped_total{}"], got["redis_errors_total{kind=network}"])
	}

	w.deafen(c)
	w.get(t.Context(), e, "item:1")
	got = samples(t, c.Collector())
	wantSamples(t, got, map[string]float64{
		"cache_requests_total{class=item,layer=stale,result=hit}": 1,
		"cache_stale_age_seconds{class=item} count":               1,
		"client_state{state=blind}":                               1,
	})
}

type failing struct{ err error }

func (f failing) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f failing) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(context.Context, []redis.Cmder) error { return f.err }
}

func (f failing) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(context.Context, redis.Cmder) error { return f.err }
}

// TestCollectorOfGaps: a lost message is a gap and a replay.
func TestCollectorOfGaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost := make(chan struct{})
	c := w.open(Options{}, hooks{received: func(r *received) bool {
		if !strings.Contains(r.body, "item:lost") {
			return true
		}
		close(lost)
		return false
	}})
	before := samples(t, c.Collector())
	w.invalidate("item:lost", 200)
	<-lost
	w.invalidate("item:2", 210)
	w.live(c)
	harness.Eventually(t, 10*time.Second, func() error {
		got := samples(t, c.Collector())
		for _, name := range []string{"broadcast_gaps_total{}", "broadcast_replays_total{}"} {
			if got[name] <= before[name] {
				return fmt.Errorf("%s: got %v, before %v", name, got[name], before[name])
			}
		}
		return nil
	})
	w.want("gaps", c.Stats().Gaps, uint64(1))
}

// TestTwoCollectors: two Clients of a process are told apart by a label.
func TestTwoCollectors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	reg := prometheus.NewPedanticRegistry()
	for name, c := range map[string]*Client{"a": a, "b": b} {
		if err := prometheus.WrapRegistererWith(prometheus.Labels{"cache": name}, reg).Register(c.Collector()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := testutil.GatherAndCount(reg, "lethe_broadcast_gaps_total"); err != nil || n != 2 {
		t.Errorf("got %d, %v, want 2 series", n, err)
	}
}

// TestHistogram: cumulative, with what lies beyond the last bound in the count.
func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	for _, d := range []time.Duration{0, time.Second, time.Second + 1, 48 * time.Hour} {
		h.add(boundsAge, d)
	}
	s := h.snapshot(boundsAge)
	if got, want := fmt.Sprint(s.Count, s.Sum, s.Counts[:3], s.Counts[len(s.Counts)-1]), fmt.Sprint(4, 48*time.Hour+2*time.Second+1, []uint64{2, 3, 3}, 3); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := s.plus(s); got.Count != 8 || got.Counts[0] != 4 || s.Counts[0] != 2 {
		t.Errorf("twice: %+v, of %+v", got, s)
	}
	if len(boundsRead) >= len(h.buckets) || len(boundsL1) >= len(h.buckets) {
		t.Error("more bounds than buckets")
	}
}

// TestMetricsAreDocumented: docs/client.md has each of them.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	s := filled(t)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(collector{stats: func() Stats { return s }})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.Contains(string(page), "`"+f.GetName()+"`") {
			t.Errorf("docs/client.md does not have %s", f.GetName())
		}
	}
}

// TestCollectorOfL1: what L1 holds of each class, and what it has put out.
func TestCollectorOfL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &witness{}
	c := w.open(Options{L1Bytes: 64 << 10, Observer: o}, hooks{})
	e := w.items(c)
	for i := range 3 {
		w.get(t.Context(), e, fmt.Sprintf("item:%d", i))
	}
	s := c.Stats()
	bytes := s.Classes["item"].L1Bytes
	wantSamples(t, samples(t, c.Collector()), map[string]float64{
		"l1_entries{class=item}": 3, "l1_bytes{class=item}": float64(bytes), "l1_evictions_total{class=item}": 0,
	})
	if bytes != s.L1Bytes || bytes == 0 {
		t.Errorf("bytes of the class: got %d, want all %d", bytes, s.L1Bytes)
	}
	w.write("item:0", 300)
	w.live(c)
	w.want("entries after an invalidation", c.Stats().Classes["item"].L1Entries, 2)
	for i := range 1000 {
		w.get(t.Context(), e, fmt.Sprintf("item:%d", i))
	}
	s = c.Stats()
	if t := s.Classes["item"]; t.L1Entries != s.L1Entries || t.L1Bytes > 64<<10 {
		w.t.Errorf("the class has %d entries and %d bytes; want all %d, and 64 KB at most", t.L1Entries, t.L1Bytes, s.L1Entries)
	}
	if n := s.Classes["item"].L1Evictions; n == 0 || !slices.Contains(o.take(), "eviction item") {
		t.Errorf("%d evictions, want some, and the observer told", n)
	}
	c.bump("a test")
	w.live(c)
	w.want("entries after an epoch", fmt.Sprint(c.Stats().Classes["item"].L1Entries, c.Stats().Classes["item"].L1Bytes), "0 0")
}
