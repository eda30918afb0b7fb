package publication_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

// due are the gaps that the reader of the slot has to raise, "twice" marked.
func (d *database) due(slot string) (gaps []publication.Gap, names []string) {
	d.Helper()
	gaps, err := publication.Due(d.Context(), d.conn, config, slot)
	if err != nil {
		d.Fatal(err)
	}
	for _, g := range gaps {
		name := g.Table
		if g.Twice {
			name += " twice"
		}
		names = append(names, name)
	}
	return gaps, names
}

func (d *database) wantDue(slot string, want ...string) []publication.Gap {
	d.Helper()
	gaps, names := d.due(slot)
	if !slices.Equal(names, want) {
		d.Errorf("due for slot %s is %q, want %q", slot, names, want)
	}
	return gaps
}

func (d *database) told(slot string, gaps []publication.Gap) {
	d.Helper()
	if err := publication.Told(d.Context(), d.conn, config, slot, gaps); err != nil {
		d.Fatal(err)
	}
}

// The process that has let a table enter dies before the raise is durable: the
// next one finds the publication in step, and must raise nevertheless. So must
// the reader of another slot.
func TestServerGapOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`, `CREATE TABLE b (id int PRIMARY KEY)`)
	a, b := use("a", rules.OnAll, "x"), use("b", rules.OnAll, "id")
	if c := d.sync(a, b); !c.Stored {
		t.Fatal("Stored is false where the tables are there")
	}
	first := d.wantDue("s", "public.a twice", "public.b twice")
	if c := d.sync(a, b); c.Any() {
		t.Fatalf("the second Sync changed %+v", c)
	}
	same := d.wantDue("s", "public.a twice", "public.b twice")
	if a, b := publication.Cause(first), publication.Cause(same); a != b {
		t.Errorf("asked again the cause is %s, want %s: it would be forgotten twice", b, a)
	}
	d.told("s", first)
	d.wantDue("s")
	d.wantDue("other", "public.a twice", "public.b twice")

	// Another gap of a table that is told; telling the first again does not hide it.
	d.sync(use("a", rules.OnInsert, "x"), b)
	d.wantDue("s")
	d.sync(a, b)
	d.wantDue("s", "public.a twice")
	d.told("s", first)
	again := d.wantDue("s", "public.a twice")
	if publication.Cause(again) == publication.Cause(first[:1]) {
		t.Error("another gap of the same table has the same cause: it would not be applied")
	}
	d.told("s", again)
	d.wantDue("s")
}

// A Sync that is rolled back leaves no gap, and one that somebody may not store
// says so.
func TestServerGapIsOfTheSameTransaction(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY)`)
	// The row can not be written, so the table must not enter either.
	d.exec(`ALTER TABLE lethe.gaps ADD CONSTRAINT no CHECK (table_name = '')`)
	if _, err := publication.Sync(t.Context(), d.conn, config, []rules.TableUse{use("a", rules.OnAll, "id")}); err == nil {
		t.Error("Sync succeeded although the gap was not stored")
	}
	d.wantPublished("public.a")
	d.exec(`DROP TABLE lethe.gaps`)
	if c := d.sync(use("a", rules.OnAll, "id")); c.Stored || !slices.Equal(c.Entered, []string{"public.a"}) {
		t.Errorf("entered %q, stored %v, want a, not stored", c.Entered, c.Stored)
	}
	d.wantDue("s")
}

// What happens to tables while no Lethe runs is noticed by the next one: DDL
// that no guard tells of, and tables that somebody publishes by hand.
func TestServerWatcherNoticesWhatItWasNotThereFor(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY, x int)`, `CREATE TABLE b (id int PRIMARY KEY)`, `CREATE TABLE c (id int PRIMARY KEY)`)
	uses := []rules.TableUse{use("a", rules.OnAll, "id", "x"), use("b", rules.OnAll, "id")}
	d.sync(uses...)
	newWatcher(d, uses...)
	gaps, _ := d.due("s")
	d.told("s", gaps)
	newWatcher(d, uses...) // another process: nothing has happened
	d.wantDue("s")

	d.exec(`ALTER TABLE a ALTER x TYPE bigint`)
	d.exec(`ALTER PUBLICATION lethe ADD TABLE c`)
	uses = append(uses, use("c", rules.OnAll, "id"))
	w := watcher{d, publication.NewWatcher(config, uses)}
	c := w.check()
	if got, want := fmt.Sprint(c.Altered, c.Entered), "[public.a] [public.c]"; got != want {
		t.Errorf("altered and entered are %s, want %s", got, want)
	}
	gaps = d.wantDue("s", "public.c twice", "public.a twice") // a wanted it before: once a wish, always
	d.told("s", gaps)
	if c := w.check(); c.Any() || len(c.Altered) > 0 {
		t.Errorf("the next check changes %+v", c)
	}
	d.wantDue("s")
}

// A gap that could not be stored stays one: what was seen is compared with again
// until it is, or a process that dies before its raise is durable would take the
// news along, and the next one would find everything as it was left.
func TestServerWatcherStoresAGapThatItCouldNot(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY, x int)`)
	if _, err := migrations.Apply(t.Context(), d.conn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	uses := []rules.TableUse{use("a", rules.OnAll, "id", "x")}
	d.sync(uses...)
	w := newWatcher(d, uses...)
	gaps, _ := d.due("s")
	d.told("s", gaps)

	d.exec(`ALTER TABLE a ALTER x TYPE bigint`)
	release := d.hold(`LOCK TABLE lethe.gaps IN SHARE MODE`)
	c, err := w.Check(t.Context(), d.conn)
	if err == nil || c.Stored || !slices.Equal(c.Altered, []string{"public.a"}) {
		t.Errorf("altered %q, stored %v (%v), want a, which can not be stored", c.Altered, c.Stored, err)
	}
	release()
	if c := w.check(); !c.Stored || !slices.Equal(c.Altered, []string{"public.a"}) {
		t.Errorf("altered %q, stored %v, want a, stored now", c.Altered, c.Stored)
	}
	d.wantDue("s", "public.a twice")
	if c := w.check(); len(c.Altered) > 0 {
		t.Errorf("altered %q once it is stored", c.Altered)
	}
}

// Of several attempts the sum counts as stored only if each gap is.
func TestChangesAdd(t *testing.T) {
	t.Parallel()
	var sum publication.Changes
	sum.Add(publication.Changes{}) // failed before it did anything
	sum.Add(publication.Changes{Entered: []string{"b"}, Stored: true})
	sum.Add(publication.Changes{Entered: []string{"a", "b"}, Guarded: true, Stored: true})
	if got := fmt.Sprint(sum.Entered); got != "[a b]" || !sum.Stored || !sum.Guarded {
		t.Errorf("entered %s, stored %v, guarded %v; want a and b, stored and guarded", got, sum.Stored, sum.Guarded)
	}
	sum.Add(publication.Changes{Altered: []string{"c"}})
	sum.Add(publication.Changes{Stored: true})
	if sum.Stored {
		t.Error("stored, and what altered c is not")
	}
}
