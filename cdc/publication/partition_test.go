package publication_test

import (
	"slices"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

// partitioned is a root without a primary key, whose leaves identify their rows
// each in its own way.
var partitioned = []string{
	`CREATE TABLE a (id int NOT NULL, region text NOT NULL, x int, y int) PARTITION BY LIST (region)`,
	`CREATE TABLE a_eu PARTITION OF a FOR VALUES IN ('eu')`,
	`ALTER TABLE a_eu ADD PRIMARY KEY (id)`,
	`INSERT INTO a VALUES (1, 'eu', 1, 1)`,
}

func TestServerPartitions(t *testing.T) {
	t.Parallel()
	for _, guarded := range []bool{false, true} {
		name := map[bool]string{false: "watched", true: "guarded"}[guarded]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// mend is nothing where the guard works: it was there in time.
			mend := func(watcher) {}
			if !guarded {
				mend = func(w watcher) { w.check() }
			}

			naive := newDatabase(t, false, partitioned...)
			naive.exec(`CREATE PUBLICATION naive FOR TABLE a`)
			naive.exec(`CREATE TABLE a_us PARTITION OF a FOR VALUES IN ('us')`)
			naive.fails(`UPDATE a SET x = 2 WHERE region = 'us'`, "does not have a replica identity")

			d := newDatabase(t, guarded, partitioned...)
			a := use("a", rules.OnAll, "x")
			d.sync(a)
			w := newWatcher(d, a)
			if guarded && d.version() >= 150000 {
				d.wantPublished("public.a", "lethe: id,x")
			}
			d.exec(`UPDATE a SET x = 2`)

			d.exec(`CREATE TABLE a_us PARTITION OF a FOR VALUES IN ('us')`)
			mend(w)
			d.exec(`INSERT INTO a VALUES (2, 'us', 1, 1)`)
			d.exec(`UPDATE a SET x = 2 WHERE region = 'us'`)
			if c := w.check(); !slices.Equal(c.Blind, []string{"public.a"}) {
				t.Errorf("blind %q, want a: one of its partitions has no identity", c.Blind)
			}

			d.exec(`ALTER TABLE a_us REPLICA IDENTITY FULL`)
			mend(w)
			if c := w.check(); guarded && !slices.Equal(c.Grew, []string{"public.a"}) || len(c.Blind) > 0 {
				t.Errorf("grew %q and blind %q, want a to be back", c.Grew, c.Blind)
			}
			d.exec(`UPDATE a SET x = 3`)

			d.exec(`CREATE TABLE a_as (LIKE a)`)
			d.exec(`ALTER TABLE a ATTACH PARTITION a_as FOR VALUES IN ('as')`)
			mend(w)
			d.exec(`INSERT INTO a VALUES (3, 'as', 1, 1)`)
			d.exec(`DELETE FROM a`)
			d.exec(`DROP TABLE a_us`)
			d.exec(`ALTER TABLE a DETACH PARTITION a_as`)
			mend(w)
			if c := w.check(); guarded && !slices.Contains(c.Altered, "public.a") {
				t.Errorf("altered %q, want a: partitions went", c.Altered)
			}
			d.exec(`INSERT INTO a VALUES (1, 'eu', 1, 1)`)
			d.exec(`UPDATE a SET x = 4`)
		})
	}
}

// A TRUNCATE of one partition is not published; the Watcher is all there is.
func TestServerWatcherSeesWhatTheLogDoesNot(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, append(slices.Clone(partitioned), `CREATE TABLE b (id int PRIMARY KEY, x int)`)...)
	w := newWatcherAfter(d, use("a", rules.OnAll, "x"), use("b", rules.OnAll, "x"))
	for _, step := range []struct {
		ddl  string
		want []string
	}{
		{`UPDATE b SET x = 1`, nil},
		{`ANALYZE a; CREATE INDEX ON b (x)`, nil},
		{`TRUNCATE a_eu`, []string{"public.a"}},
		{`ALTER TABLE b ALTER x TYPE int USING x * 2`, []string{"public.b"}},
		{`ALTER TABLE b ADD COLUMN z int`, []string{"public.b"}},
		{`ALTER TABLE b RENAME COLUMN z TO zz`, []string{"public.b"}},
		{`CREATE TABLE a_us PARTITION OF a FOR VALUES IN ('us')`, []string{"public.a"}},
		{`DROP TABLE b`, []string{"public.b"}},
	} {
		d.exec(step.ddl)
		if c := w.check(); !slices.Equal(c.Altered, step.want) {
			t.Errorf("after %s altered %q, want %q", step.ddl, c.Altered, step.want)
		}
	}
	d.exec(`CREATE TABLE b (id int PRIMARY KEY, x int)`)
	if c := w.check(); !slices.Equal(c.Entered, []string{"public.b"}) {
		t.Errorf("entered %q, want the new b", c.Entered)
	}
}

func newWatcherAfter(d *database, uses ...rules.TableUse) watcher {
	d.Helper()
	d.sync(uses...)
	return newWatcher(d, uses...)
}
