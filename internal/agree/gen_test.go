package agree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// agreeGen makes one schema, rules for it, and transactions, all from a seed.
type agreeGen struct {
	r      *rand.Rand
	prefix string
	tables []genTable
}

type genTable struct {
	name        string
	columns     []genColumn
	key         []string // primary key; empty: none
	identity    string   // "", FULL, or columns of an index
	refers      string   // the table that the column ref refers to
	partitioned bool
}

type genColumn struct {
	genType
	name    string
	notNull bool
}

// genType is a kind of column: its type, the values that it takes, how it may
// stand in a name, and what a condition may ask of it.
type genType struct {
	typ    string
	values []string
	paths  []string // behind the column's name; the first is the plain one if it starts with ""
	asks   []string // %s is the column
}

var plainly = []string{"", "", ""}

var genTypes = []genType{
	{"int", []string{"1", "2", "3", "4", "-5"}, plainly, []string{"new.%s == 2", "old.%[1]s != new.%[1]s", "new.%s > 1 && new.%[1]s < 4"}},
	{"bigint", []string{"1", "2", "9007199254740993"}, plainly, []string{"new.%s >= 2"}},
	{"text", []string{"''", "'a'", "'B c'", "'ü:x'", "'%/'", "'2026-01-31'"}, append([]string{"|lower", "|upper", "|urlencode", "|hash"}, plainly...),
		[]string{`new.%s == "a"`, `new.%s.startsWith("B")`, `old.%s == null`}},
	{"varchar(20)", []string{"'x'", "'Y'", "' z '"}, plainly, []string{`new.%s in ["x", "Y"]`}},
	{"uuid", []string{"'00000000-0000-4000-8000-00000000000a'", "'AAAAAAAA-0000-4000-8000-000000000001'"}, []string{"", "|upper"}, nil},
	{"boolean", []string{"true", "false"}, plainly, []string{"new.%s", "!old.%s"}},
	{"timestamptz", []string{"'2026-01-31 23:30:00-02'", "'2026-12-31 23:59:59.5+00'", "'infinity'"}, []string{"", "|date", "|date:month", "|date:hour"},
		[]string{`new.%s > timestamp("2026-06-01T00:00:00Z")`}},
	{"date", []string{"'2026-01-31'", "'2025-02-01'"}, []string{"", "|date:year"}, nil},
	{"numeric(10,2)", []string{"1.5", "2", "-3.10"}, plainly, []string{"new.%s > 1.0"}},
	{"float8", []string{"1.5", "1e20", "0.1", "'NaN'"}, plainly, []string{"new.%s < 2.0"}},
	{"jsonb", []string{`'{"type": "a", "user_id": 7, "items": [{"id": 1}, {"id": 2}, {"id": 1}]}'`, `'{"type": "b", "user_id": "x:1"}'`, `'[]'`, `'null'`,
		`'{"items": [{"id": 1.50}, {}], "user_id": {"a": 1}}'`},
		[]string{".user_id", ".items[*].id", ".items[*].id|urlencode"}, []string{`new.%s.type == "a"`, `has(new.%s.user_id)`}},
	{"json", []string{`'{"type":"a", "user_id": 7}'`, `'{"user_id": 12345678901234567890}'`, `'{"user_id": true}'`}, []string{".user_id"}, nil},
	{"text[]", []string{`'{a,b}'`, `'{}'`, `'{NULL,"x y",a}'`, `'{{a,b},{c,d}}'`}, []string{"[*]", "[0]"}, nil},
	{"int[]", []string{`'{1,2,1}'`, `'{}'`, `'{3}'`}, []string{"[*]"}, nil},
	{"mood", []string{"'sad'", "'OK'"}, []string{"", "|lower"}, []string{`new.%s == "OK"`}},
}

func newAgreeGen(seed uint64) *agreeGen {
	return &agreeGen{r: rand.New(rand.NewPCG(seed, 0)), prefix: fmt.Sprintf("r%x", seed&0xffffff)}
}

func (g *agreeGen) chance(percent int) bool { return g.r.IntN(100) < percent }

func pick[T any](g *agreeGen, list []T) T { return list[g.r.IntN(len(list))] }

// schema makes up to three tables; one may refer to the one before, be
// partitioned, have no primary key, or change another by a trigger.
func (g *agreeGen) schema() (out []string) {
	for i := range 1 + g.r.IntN(3) {
		t := genTable{name: fmt.Sprintf("%s_%d", g.prefix, i), key: []string{"id"}}
		t.columns = append(t.columns, genColumn{genTypes[0], "id", true})
		for j := range 2 + g.r.IntN(5) {
			t.columns = append(t.columns, genColumn{pick(g, genTypes), fmt.Sprintf("c%d", j), g.chance(40)})
		}
		t.columns[1].genType, t.columns[1].notNull = genTypes[0], true // one that an index may have
		switch {
		case g.chance(20):
			t.key = []string{"id", "c0"}
		case g.chance(20):
			t.key, t.identity = nil, "FULL"
		}
		switch {
		case g.chance(20) && t.key != nil:
			t.partitioned = true
		case t.identity == "" && g.chance(30):
			t.identity = "FULL"
		case t.identity == "" && g.chance(30):
			t.identity = "id, c0"
		}
		if i > 0 && len(g.tables[i-1].key) == 1 && g.chance(60) {
			t.refers = g.tables[i-1].name
		}
		g.tables = append(g.tables, t)
		out = append(out, g.create(&t)...)
	}
	if last := len(g.tables) - 1; last > 0 && g.chance(30) {
		from, to := g.tables[0].name, g.tables[last].name
		out = append(out, fmt.Sprintf(`CREATE FUNCTION %[1]s_touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE %[3]s SET c0 = c0 + 1 WHERE id = NEW.id; RETURN NEW; END'`, g.prefix, from, to),
			fmt.Sprintf(`CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION %s_touch()`, from, g.prefix))
	}
	return out
}

func (g *agreeGen) create(t *genTable) (out []string) {
	var parts []string
	for _, c := range t.columns {
		part := c.name + " " + c.typ
		if c.notNull {
			part += " NOT NULL"
		}
		parts = append(parts, part)
	}
	if t.refers != "" {
		parts = append(parts, fmt.Sprintf("ref int REFERENCES %s (id) ON DELETE %s ON UPDATE CASCADE", t.refers, pick(g, []string{"CASCADE", "SET NULL"})))
	}
	if t.key != nil {
		parts = append(parts, "PRIMARY KEY ("+strings.Join(t.key, ", ")+")")
	}
	create := fmt.Sprintf("CREATE TABLE %s (%s)", t.name, strings.Join(parts, ", "))
	if t.partitioned {
		out = append(out, create+" PARTITION BY RANGE (id)",
			fmt.Sprintf("CREATE TABLE %[1]s_a PARTITION OF %[1]s FOR VALUES FROM (MINVALUE) TO (4)", t.name),
			fmt.Sprintf("CREATE TABLE %[1]s_b PARTITION OF %[1]s FOR VALUES FROM (4) TO (MAXVALUE)", t.name))
		// All partitions the same: where they differ explain goes by what all of
		// them log, and the worker by those that it has seen.
		leaves := pick(g, []string{"DEFAULT", "DEFAULT", "FULL", "USING INDEX %s_ix"})
		for _, leaf := range []string{t.name + "_a", t.name + "_b"} {
			how := leaves
			if strings.Contains(how, "%s") {
				out = append(out, fmt.Sprintf("CREATE UNIQUE INDEX %[1]s_ix ON %[1]s (c0, id)", leaf))
				how = fmt.Sprintf(how, leaf)
			}
			out = append(out, "ALTER TABLE "+leaf+" REPLICA IDENTITY "+how)
		}
		if g.chance(40) { // it is not handed down, and decides nothing
			out = append(out, "ALTER TABLE "+t.name+" REPLICA IDENTITY FULL")
		}
		return out
	}
	out = append(out, create)
	switch t.identity {
	case "":
	case "FULL":
		out = append(out, "ALTER TABLE "+t.name+" REPLICA IDENTITY FULL")
	default:
		out = append(out, fmt.Sprintf("CREATE UNIQUE INDEX %[1]s_ix ON %[1]s (%[2]s)", t.name, t.identity), fmt.Sprintf("ALTER TABLE %[1]s REPLICA IDENTITY USING INDEX %[1]s_ix", t.name))
	}
	return out
}

func (g *agreeGen) drop() (out []string) {
	for _, t := range g.tables {
		out = append(out, "DROP TABLE "+t.name+" CASCADE")
	}
	return append(out, "DROP FUNCTION IF EXISTS "+g.prefix+"_touch()")
}

// arity is how many placeholders the keys of class i have.
func arity(i int) int { return 1 + i%2 }

const genClasses = 4

// rules are a file that has no errors.
func (g *agreeGen) rules(namespace string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nnamespace: %s\nentries:\n", namespace)
	form := func(i int) string {
		return []string{fmt.Sprintf("k%d:{a}", i), fmt.Sprintf("k%d:{a}:{b}", i)}[arity(i)-1]
	}
	for i := range genClasses {
		fmt.Fprintf(&b, "  k%d: {key: '%s'%s}\n", i, form(i), pick(g, []string{"", "", ", versions: [1, 2]", ", mode: plain", ", keep: true", fmt.Sprintf(", tags: ['g%d:{a}']", g.r.IntN(3))}))
	}
	b.WriteString("rules:\n")
	for i := range 1 + g.r.IntN(5) {
		t := &g.tables[g.r.IntN(len(g.tables))]
		fmt.Fprintf(&b, "- name: rule %d\n  table: %s\n", i, t.name)
		if g.chance(40) {
			on := slices.Clone([]string{"insert", "update", "delete", "truncate"})
			g.r.Shuffle(len(on), func(i, j int) { on[i], on[j] = on[j], on[i] })
			fmt.Fprintf(&b, "  on: [%s]\n", strings.Join(on[:1+g.r.IntN(3)], ", "))
		}
		if g.chance(50) {
			fmt.Fprintf(&b, "  when: '%s'\n", strings.ReplaceAll(g.condition(t), "'", "''"))
		}
		var keys []string
		for range 1 + g.r.IntN(2) {
			class := g.r.IntN(genClasses + 1) // one has no class
			key := fmt.Sprintf("k%d:%s", class, g.placeholder(t))
			if arity(class) == 2 {
				key += ":" + g.placeholder(t)
			}
			keys = append(keys, key)
		}
		slices.Sort(keys)
		fmt.Fprintf(&b, "  keys: [%s]\n", quoted(slices.Compact(keys)))
		var tags []string
		for range g.r.IntN(3) {
			tags = append(tags, fmt.Sprintf("g%d:%s", g.r.IntN(3), g.placeholder(t)))
		}
		slices.Sort(tags)
		switch tags = slices.Compact(tags); {
		case len(tags) == 2 && !strings.Contains(strings.Join(tags, ""), "[*]") && g.chance(50):
			fmt.Fprintf(&b, "  tags: {all: [%s]}\n", quoted(tags))
		case len(tags) > 0:
			fmt.Fprintf(&b, "  tags: [%s]\n", quoted(tags))
		}
		for _, line := range []string{"action: " + pick(g, []string{"stale", "rewarm"}), "strict: true", pick(g, []string{"cascade: false", "cascade: {depth: 1}", "cascade: {depth: 3}", "cascade: {depth: 3, stale_beyond: 1}", "cascade: {stale_beyond: 0}"})} {
			if g.chance(30) {
				fmt.Fprintf(&b, "  %s\n", line)
			}
		}
	}
	if g.chance(60) {
		b.WriteString("dependencies:\n")
		for i := range genClasses {
			var also []string
			for j := range genClasses {
				if i != j && arity(j) <= arity(i) && g.chance(35) {
					also = append(also, form(j))
				}
			}
			if g.chance(20) {
				also = append(also, "g1:{a}")
			}
			if len(also) > 0 {
				fmt.Fprintf(&b, "- {of: '%s', also: [%s]%s}\n", form(i), quoted(also), g.edgeCondition())
			}
		}
		fmt.Fprintf(&b, "- {of: 'g0:{a}', also: ['k0:{a}']}\n")
	}
	return b.String()
}

// edgeCondition is one of those that a dependency may have.
func (g *agreeGen) edgeCondition() string {
	if g.chance(50) {
		return ""
	}
	return ", when: '" + pick(g, []string{`op != "insert"`, `depth < 2`, `a.startsWith("1")`, `rule == "rule 0"`, `op == "update" && a != "2"`, `table.endsWith("_0")`}) + "'"
}

func quoted(list []string) string { return "'" + strings.Join(list, "', '") + "'" }

// placeholder is one of a column that names can be made of.
func (g *agreeGen) placeholder(t *genTable) string {
	c := pick(g, t.columns)
	if g.chance(30) {
		c = t.columns[0]
	}
	return "{" + pick(g, []string{"", "", "", "", "", "", "old.", "new."}) + c.name + pick(g, c.paths) + "}"
}

func (g *agreeGen) condition(t *genTable) string {
	one := func() string {
		c := pick(g, t.columns)
		switch {
		case g.chance(30) || c.asks == nil:
			return fmt.Sprintf(`changed("%s")`, c.name)
		case g.chance(20):
			return fmt.Sprintf(`op == "%s"`, pick(g, []string{"insert", "update", "delete"}))
		}
		return fmt.Sprintf(strings.ReplaceAll(pick(g, c.asks), "%s", "%[1]s"), c.name)
	}
	out := one()
	for g.chance(40) {
		out = "(" + out + ") " + pick(g, []string{"&&", "||"}) + " " + pick(g, []string{"", "!"}) + "(" + one() + ")"
	}
	return out
}

// transaction is some statements; rows meet, as there are few. The first ones
// fill the tables.
func (g *agreeGen) transaction(fill bool) (out []string) {
	if fill {
		for i := range g.tables {
			for range 3 {
				out = append(out, g.statement(&g.tables[i], 0))
			}
		}
		return out
	}
	for range 1 + g.r.IntN(4) {
		out = append(out, g.statement(&g.tables[g.r.IntN(len(g.tables))], g.r.IntN(100)))
	}
	return out
}

// statement is one of a kind that n chooses, from 0 to 99.
func (g *agreeGen) statement(t *genTable, n int) string {
	where := pick(g, []string{" WHERE id = %d", " WHERE id = %d", " WHERE id <= %d"})
	where = fmt.Sprintf(where, 1+g.r.IntN(6))
	switch {
	case n < 30:
		var names, values []string
		for _, c := range t.columns {
			names = append(names, c.name)
			values = append(values, g.value(&c))
		}
		values[0] = fmt.Sprint(1 + g.r.IntN(6))
		conflict := ""
		if t.key != nil {
			c := t.columns[len(t.columns)-1].name
			conflict = pick(g, []string{" ON CONFLICT DO NOTHING", fmt.Sprintf(" ON CONFLICT (%s) DO UPDATE SET %s = EXCLUDED.%[2]s", strings.Join(t.key, ", "), c)})
		}
		return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)%s", t.name, strings.Join(names, ", "), strings.Join(values, ", "), conflict)
	case n < 75:
		c := t.columns[1+g.r.IntN(len(t.columns)-1)]
		set := c.name + " = " + g.value(&c)
		if g.chance(20) {
			set = c.name + " = " + c.name // nothing changes
		}
		if t.refers != "" && g.chance(20) {
			set = fmt.Sprintf("ref = (SELECT min(id) FROM %s)", t.refers)
		}
		return "UPDATE " + t.name + " SET " + set + where
	case n < 83:
		return fmt.Sprintf("UPDATE %s SET id = id %+d%s", t.name, pick(g, []int{10, -10, 3}), where)
	case n < 96:
		return "DELETE FROM " + t.name + where
	}
	return "TRUNCATE " + t.name + " CASCADE"
}

func (g *agreeGen) value(c *genColumn) string {
	if !c.notNull && g.chance(15) {
		return "NULL"
	}
	return pick(g, c.values)
}
