package publication_test

import (
	"slices"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

// shopTable is what the traps below are set with: a primary key, a unique index
// that may become the identity, and columns that rules do and do not read.
var shopTable = []string{
	`CREATE TYPE size AS ENUM ('s', 'm')`,
	`CREATE TABLE a (id int PRIMARY KEY, name text, sku int NOT NULL, price numeric, size size, note text)`,
	`CREATE UNIQUE INDEX a_sku ON a (sku)`,
	`INSERT INTO a VALUES (1, 'one', 1, 1.5, 's', 'x')`,
}

// traps are the DDLs that make a naive publication break the application.
var traps = []struct {
	name string
	// ddl is run while the table is published; statement comes after it.
	ddl, statement string
	// damage is what Postgres says, where the publication is naive, to the
	// statement, or to the ddl itself if that is what fails.
	damage  string
	ddlHurt bool
	// lists: the damage needs a column list.
	lists bool
	// want is what the table is published as with the guard, at once.
	want string
}{
	{"identity nothing", `ALTER TABLE a REPLICA IDENTITY NOTHING`, `UPDATE a SET name = 'b'`,
		"does not have a replica identity", false, false, "lethe_inserts: id,name,sku,price,size,note"},
	{"primary key dropped", `ALTER TABLE a DROP CONSTRAINT a_pkey`, `DELETE FROM a`,
		"does not have a replica identity", false, false, "lethe_inserts: id,name,sku,price,size,note"},
	{"identity full", `ALTER TABLE a REPLICA IDENTITY FULL`, `UPDATE a SET name = 'b'`,
		"does not cover the replica identity", false, true, "lethe: id,name,sku,price,size,note"},
	{"identity using index", `ALTER TABLE a REPLICA IDENTITY USING INDEX a_sku`, `UPDATE a SET name = 'b'`,
		"does not cover the replica identity", false, true, "lethe: id,name,sku,price,size,note"},
	{"another primary key", `ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (sku)`, `DELETE FROM a`,
		"does not cover the replica identity", false, true, "lethe: id,name,sku,price,size,note"},
	{"listed column dropped", `ALTER TABLE a DROP COLUMN price`, `UPDATE a SET name = 'b'`,
		"other objects depend on it", true, true, "lethe: id,name,sku,size,note"},
	{"listed column dropped, quoted and by a DO block", `DO $$ BEGIN EXECUTE 'ALTER TABLE "a" ' || 'DR' || 'OP "price"'; END $$`, `UPDATE a SET name = 'b'`,
		"other objects depend on it", true, true, "lethe: id,name,sku,size,note"},
	{"identity column dropped", `ALTER TABLE a DROP COLUMN id`, `UPDATE a SET name = 'b'`,
		"other objects depend on it", true, true, "lethe_inserts: name,sku,price,size,note"},
	{"type of a listed column", `ALTER TABLE a ALTER price TYPE text`, `UPDATE a SET name = 'b'`,
		"used by a publication WHERE clause", true, true, "lethe: id,name,sku,price,size,note"},
	{"type of a listed column dropped", `DROP TYPE size CASCADE`, `UPDATE a SET name = 'b'`,
		"", false, true, "lethe: id,name,sku,price,note"},
	{"identity index dropped", `ALTER TABLE a REPLICA IDENTITY USING INDEX a_sku; DROP INDEX a_sku`, `UPDATE a SET name = 'b'`,
		"does not have a replica identity", false, false, "lethe_inserts: id,name,sku,price,size,note"},
}

// TestServerGuard shows each trap first with a publication that nobody guards,
// and then with ours.
func TestServerGuard(t *testing.T) {
	t.Parallel()
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) {
			t.Parallel()
			if trap.lists {
				(&database{T: t}).lists()
			}
			naive := newDatabase(t, false, shopTable...)
			if trap.lists {
				naive.exec(`CREATE PUBLICATION naive FOR TABLE a (id, name, price, size)`)
			} else {
				naive.exec(`CREATE PUBLICATION naive FOR TABLE a`)
			}
			switch {
			case trap.ddlHurt:
				naive.fails(trap.ddl, trap.damage)
			case trap.damage != "":
				naive.exec(trap.ddl)
				naive.fails(trap.statement, trap.damage)
			default: // silent: the table leaves the publication
				naive.exec(trap.ddl)
				if got := naive.published("public.a"); len(got) != 0 {
					t.Fatalf("published as %q, want the damage: nothing", got)
				}
			}

			d := newDatabase(t, true, shopTable...)
			all := use("a", rules.OnAll, "name", "price", "size")
			if c := d.sync(all); !c.Guarded {
				t.Fatal("the guard is not at work")
			}
			if d.version() >= 150000 {
				d.wantPublished("public.a", "lethe: id,name,price,size")
			}
			// In one transaction, as the application may well do it.
			d.exec(`BEGIN; ` + trap.ddl + `; ` + trap.statement + `; COMMIT`)
			d.exec(trap.statement)
			if d.version() >= 150000 {
				d.wantPublished("public.a", trap.want)
			}
		})
	}
}

// TestWithoutGuard: the same DDL, and the next check of the Watcher mends what
// it has broken. Column lists are not used then, so the DDL itself never fails.
func TestServerWatcherWithoutGuard(t *testing.T) {
	t.Parallel()
	for _, trap := range traps {
		t.Run(trap.name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, false, shopTable...)
			all := use("a", rules.OnAll, "name", "price", "size")
			if c := d.sync(all); c.Guarded {
				t.Fatal("the guard is at work and should not be")
			}
			w := newWatcher(d, all)
			d.exec(trap.ddl)
			c := w.check()
			d.exec(trap.statement)
			blind := trap.want[:len("lethe_inserts")] == "lethe_inserts"
			if got := slices.Contains(c.Blind, "public.a"); got != blind {
				t.Errorf("blind %v, want %v", got, blind)
			}
			if got := slices.Contains(c.Moved, "public.a"); got != blind {
				t.Errorf("moved %v, want %v", got, blind)
			}
			if d.version() >= 150000 {
				d.wantPublished("public.a", trap.want)
			}
			if c := w.check(); c.Any() || len(c.Altered) > 0 {
				t.Errorf("the next check changes %+v", c)
			}
		})
	}
}

// A statement inside a function of language SQL is in no text that the guard can
// read: every table with a column list is widened then.
func TestServerGuardCanNotSeeTheStatement(t *testing.T) {
	t.Parallel()
	const hidden = `CREATE FUNCTION hidden() RETURNS void LANGUAGE sql AS 'ALTER TABLE a DROP COLUMN price'`
	naive := newDatabase(t, false, append(slices.Clone(shopTable), hidden)...)
	naive.lists()
	naive.exec(`CREATE PUBLICATION naive FOR TABLE a (id, price)`)
	naive.fails(`SELECT hidden()`, "other objects depend on it")

	d := newDatabase(t, true, append(slices.Clone(shopTable), hidden)...)
	d.sync(use("a", rules.OnAll, "price"))
	d.exec(`SELECT hidden()`)
	d.wantPublished("public.a", "lethe: id,name,sku,size,note")
}

// The guard must not be what makes a DDL fail or wait, whatever state it is in.
func TestGuardNeverFailsDDL(t *testing.T) {
	t.Parallel()
	for name, sabotage := range map[string][]string{
		"no inserts publication":  {`DROP PUBLICATION lethe_inserts`},
		"no publication":          {`DROP PUBLICATION lethe`, `DROP PUBLICATION lethe_inserts`},
		"its table is gone":       {`DROP TABLE lethe.publications CASCADE`},
		"its function is gone":    {`DROP FUNCTION lethe.guard_tables()`},
		"inserts sends updates":   {`ALTER PUBLICATION lethe_inserts SET (publish = 'insert, update')`},
		"already in the other":    {`ALTER PUBLICATION lethe_inserts ADD TABLE a`},
		"owner without any right": {`CREATE ROLE nobody_%s`, `ALTER FUNCTION lethe.guard_after() OWNER TO nobody_%s`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDatabase(t, true, shopTable...)
			d.sync(use("a", rules.OnAll, "name"))
			for _, s := range sabotage {
				d.exec(d.named(s))
			}
			d.exec(`ALTER TABLE a ADD COLUMN more int`)
			d.exec(`ALTER TABLE a REPLICA IDENTITY NOTHING`)
			d.exec(`ALTER TABLE a DROP COLUMN note`)
			d.exec(`CREATE TABLE z (id int)`)
			d.exec(`DROP TABLE a`)
		})
	}
}
