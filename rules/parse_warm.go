package rules

import (
	"hash/fnv"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"
)

var (
	warmFields = []string{"entry", "sql", "on_start", "every", "cron", "at", "tz", "limit", "deadline", "priority"}
	httpFields = []string{"url", "secret_env", "timeout", "batch", "insecure"}

	timeOfDay = regexp.MustCompile(`^([01]\d|2[0-3]):([0-5]\d)$`)
	envName   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	fiveOf    = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)
)

func hashText(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s))
	return h.Sum64()
}

func (b *builder) warm(n *yaml.Node) {
	d := b.d
	f, ok := d.mapping(n, "warm", warmFields, nil)
	if !ok {
		return
	}
	w := &Warm{pos: d.place(n), OnStart: f.boolean("on_start", false), Zone: time.UTC,
		Every:    f.durationWithin("every", WarmEveryMin, WarmEveryMax),
		Deadline: f.durationWithin("deadline", time.Second, WarmDeadlineMax), Priority: WarmPriorityDefault}
	if w.Deadline == 0 {
		w.Deadline = WarmDeadlineDefault
	}
	if p, ok := f.integer("priority", 0, WarmPriorityMax); ok {
		w.Priority = p
	}
	w.Limit, _ = f.integer("limit", 1, 1<<31-1)
	b.warmZone(f, w)
	b.warmTimes(f, w)
	if f.required("entry") != nil {
		w.Entry, _ = f.text("entry")
		d.subject.entry = w.Entry
	}
	if sql := f.required("sql"); sql != nil {
		b.warmSQL(sql, w)
	}
	if w.Entry != "" {
		b.set.Warm = append(b.set.Warm, w)
	}
}

// durationWithin is duration, with bounds.
func (f fields) durationWithin(name string, least, most time.Duration) time.Duration {
	v := f.duration(name)
	if v != 0 && (v < least || v > most) {
		f.d.errorf(CodeValue, f.d.place(f.at[name]), "%q must be from %s to %s, not %s", name, least, most, f.d.show(f.at[name]))
		return 0
	}
	return v
}

func (b *builder) warmZone(f fields, w *Warm) {
	name, ok := f.text("tz")
	if !ok {
		return
	}
	zone, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" { // what is local differs between processes
		b.d.errorf(CodeValue, b.d.place(f.at["tz"]), "\"tz\" must be a time zone such as UTC or Europe/Berlin, not %s", b.d.show(f.at["tz"]))
		return
	}
	w.Zone = zone
	if f.value("cron") == nil && f.value("at") == nil {
		b.d.errorf(CodeValue, f.place("tz"), "\"tz\" has no meaning without \"cron\" or \"at\"")
	}
}

// warmTimes reads `cron` and `at`. A time of day is a cron too.
func (b *builder) warmTimes(f fields, w *Warm) {
	d := b.d
	if n := f.value("cron"); n != nil {
		if spec, ok := d.text(n, "cron"); ok {
			s, err := parseCron(spec, w.Zone)
			if err != nil {
				d.errorf(CodeValue, d.place(n), "\"cron\": %s: want five fields (minute, hour, day of month, month, day of week) such as \"30 3 * * *\", not %s", err, d.show(n))
			} else {
				w.Cron, w.schedules = spec, append(w.schedules, s)
			}
		}
	}
	n := f.value("at")
	if n == nil {
		return
	}
	items, ok := d.list(n, "at")
	if !ok {
		return
	}
	for _, item := range items {
		item = resolve(item)
		m := timeOfDay.FindStringSubmatch(item.Value)
		if item.Kind != yaml.ScalarNode || m == nil {
			d.errorf(CodeValue, d.place(item), "\"at\" must be a time of day such as \"03:00\", not %s", d.show(item))
			continue
		}
		s, err := parseCron(strings.Join([]string{m[2], m[1], "* * *"}, " "), w.Zone)
		if err != nil { // every time of that form is one
			d.errorf(CodeValue, d.place(item), "\"at\": %s", err)
			continue
		}
		w.At, w.schedules = append(w.At, item.Value), append(w.schedules, s)
	}
}

type cronError string

func (e cronError) Error() string { return string(e) }

func parseCron(spec string, zone *time.Location) (cron.Schedule, error) {
	// The parser takes a zone before the fields, and panics on some that are
	// none; `tz` says it here.
	if strings.Contains(spec, "=") || strings.HasPrefix(strings.TrimSpace(spec), "@") {
		return nil, cronError("not a schedule")
	}
	s, err := fiveOf.Parse(spec)
	if err != nil {
		return nil, cronError(err.Error())
	}
	if fields, ok := s.(*cron.SpecSchedule); ok {
		fields.Location = zone
	}
	if s.Next(time.Unix(0, 0)).IsZero() {
		return nil, cronError("never comes, as 30 February does not")
	}
	return s, nil
}

func (b *builder) warmSQL(n *yaml.Node, w *Warm) {
	sql, ok := b.d.text(n, "sql")
	if !ok {
		return
	}
	at := b.d.textPlace(n)
	w.sqlAt = at
	if strings.Trim(sql, "; \t\r\n") == "" {
		b.d.errorf(CodeValue, at, "warm.sql is empty: it selects the placeholders of the entry's key")
		return
	}
	for _, m := range param.FindAllStringSubmatch(sql, -1) {
		if m[1] != "" {
			b.d.errorf(CodeValue, at, "warm.sql names @%s: it takes no arguments, it says which entries there are", m[1])
			return
		}
	}
	w.SQL = sql
}

func (b *builder) httpLoader(n *yaml.Node) *HTTPLoader {
	d := b.d
	f, ok := d.mapping(n, "load.http", httpFields, nil)
	if !ok {
		return nil
	}
	h := &HTTPLoader{Timeout: f.durationWithin("timeout", 10*time.Millisecond, HTTPTimeoutMax), Batch: HTTPBatchDefault, Insecure: f.boolean("insecure", false)}
	if h.Timeout == 0 {
		h.Timeout = HTTPTimeoutDefault
	}
	if n, ok := f.integer("batch", 1, HTTPBatchMax); ok {
		h.Batch = n
	}
	if v := f.required("secret_env"); v != nil {
		if name, ok := d.text(v, "secret_env"); ok && !envName.MatchString(name) {
			d.errorf(CodeValue, d.place(v), "\"secret_env\" must be the name of an environment variable, such as LETHE_LOAD_SECRET; the secret itself does not stand in this file")
		} else {
			h.SecretEnv = name
		}
	}
	if v := f.required("url"); v != nil {
		if text, ok := d.text(v, "url"); ok {
			h.URL = text
			if wrong := checkLoaderURL(text, h.Insecure); wrong != "" {
				d.errorf(CodeValue, d.place(v), "load.http.url %s", wrong)
			}
		}
	}
	return h
}

// checkLoaderURL says what is wrong with the URL. It does not repeat it: it
// may have a password in it.
func checkLoaderURL(text string, insecure bool) string {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return "must be https://host/path"
	case u.User != nil:
		return "has a user in it: requests are signed with the secret of \"secret_env\""
	case u.Fragment != "":
		return "has a fragment, which is never sent"
	case u.Scheme == "http" && !insecure && !loopback(u.Hostname()):
		return "is http to another machine: whoever is on the way reads and writes the cache; use https, or say `insecure: true`"
	}
	return ""
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// prefetch reads the names that are warmed with one of the class.
func (b *builder) prefetch(n *yaml.Node, c *Class) {
	d := b.d
	list := b.templates(n, "prefetch", true)
	if len(list) > PrefetchMax {
		d.errorf(CodeLimit, d.place(n), "\"prefetch\" has %d names, the limit is %d", len(list), PrefetchMax)
		return
	}
	known := c.Key.Columns()
	for _, t := range list {
		ok := true
		for i := range t.Segments() {
			s := &t.Segments()[i]
			if s.Column == "" {
				continue
			}
			if !slices.Contains(known, s.Column) {
				d.errorf(CodeTemplate, t.segmentPlace(s), "prefetch: {%s} is no placeholder of %q%s", s.Column, c.Key, suggest(s.Column, known))
				ok = false
			}
			if len(s.Filters) > 0 {
				d.errorf(CodeTemplate, t.segmentPlace(s), "filters have no meaning in prefetch: the values are taken from a name as it is")
				ok = false
			}
		}
		if ok {
			c.Prefetch = append(c.Prefetch, t)
		}
	}
}
