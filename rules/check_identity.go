package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lethe-cache/lethe/change"
)

// identityNeed is what the rules of one table need of its replica identity.
type identityNeed struct {
	// old are the columns of names whose old value is needed.
	old []string
}

func (c *checker) needs(r *Rule, t *TableInfo) {
	n := c.need[t.QualifiedName()]
	if n == nil {
		n = &identityNeed{}
		c.need[t.QualifiedName()] = n
	}
	if r.On&(OnUpdate|OnDelete) == 0 {
		return
	}
	for _, use := range r.columns() {
		if use.in != nil && use.old && t.Column(use.name) != nil && !slices.Contains(n.old, use.name) {
			n.old = append(n.old, use.name)
		}
	}
}

func (c *checker) identityHas(t *TableInfo, column string) bool {
	return t.Identity == change.IdentityFull || slices.Contains(t.IdentityColumns, column)
}

// identity finds what the log will not carry of old rows.
func (c *checker) identity(r *Rule, t *TableInfo) {
	if r.On&(OnUpdate|OnDelete) == 0 {
		return
	}
	if len(t.IdentityColumns) == 0 && t.Identity != change.IdentityFull {
		c.add(Error, CodeNoIdentity, r.pos["table"], c.identityFix(t),
			"the rule needs updates or deletes of %s, which has no replica identity: they can not be published; run %s", t.QualifiedName(), c.identityFix(t))
		return
	}
	names := map[string]bool{}
	conds := map[string]bool{}
	for _, use := range r.columns() {
		if !use.old || t.Column(use.name) == nil || c.identityHas(t, use.name) {
			continue
		}
		if use.in != nil {
			if id := use.in.String() + "\x00" + use.name; !names[id] {
				names[id] = true
				c.warn(CodeHiddenOld, use.place, c.identityFix(t),
					"%q needs the old value of %q, which the log does not carry (replica identity of %s: %s): %s; run %s",
					use.in, use.name, t.QualifiedName(), strings.Join(t.IdentityColumns, ", "), leftBehind(r), c.identityFix(t))
			}
			continue
		}
		if conds[use.name] {
			continue
		}
		conds[use.name] = true
		if use.changed {
			c.warn(CodeChangedHidden, use.place, conditionFix(t),
				"changed(%q) is always true: the log does not carry the old value (replica identity of %s: %s)", use.name, t.QualifiedName(), strings.Join(t.IdentityColumns, ", "))
		} else {
			c.warn(CodeChangedHidden, use.place, conditionFix(t),
				"old.%s is not in the log (replica identity of %s: %s): a condition that needs it counts as true", use.name, t.QualifiedName(), strings.Join(t.IdentityColumns, ", "))
		}
	}
}

// leftBehind says what is not forgotten where an old value is hidden.
func leftBehind(r *Rule) string {
	if r.Strict {
		return "each such update or delete raises the class instead"
	}
	switch r.On & (OnUpdate | OnDelete) {
	case OnUpdate:
		return "a row that moves leaves its old name behind"
	case OnDelete:
		return "a row that is deleted leaves its name behind"
	}
	return "a row that moves or is deleted leaves its old name behind"
}

// identityFix is the statement that makes the log carry what the rules need of
// a table, and the columns given beside.
func (c *checker) identityFix(t *TableInfo, more ...string) string {
	old := more
	if n := c.need[t.QualifiedName()]; n != nil {
		old = slices.Concat(n.old, more)
	}
	return IdentityFix(t, old)
}

// IdentityFix returns the statements, on one line, that make the log carry the
// old values of the columns of a table. An index is better than FULL: column
// lists stay possible. Of a partitioned table the partitions are altered, as
// the identity of the root decides nothing.
func IdentityFix(t *TableInfo, columns []string) string {
	if t.Kind == 'p' && len(t.Leaves) > 0 {
		how := "FULL"
		if len(t.PrimaryKey) > 0 && covers(t.PrimaryKey, columns) {
			how = "DEFAULT"
		}
		statements := make([]string, len(t.Leaves))
		for i, l := range t.Leaves {
			statements[i] = fmt.Sprintf("ALTER TABLE %s.%s REPLICA IDENTITY %s;", quoteIdent(l.Schema), quoteIdent(l.Name), how)
		}
		return strings.Join(statements, " ")
	}
	table := quoteTable(t)
	if len(t.PrimaryKey) > 0 && covers(t.PrimaryKey, columns) && !deferredKey(t) {
		return fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY DEFAULT;", table)
	}
	for _, ix := range t.Indexes {
		if usable(t, ix) && covers(ix.Columns, columns) {
			return fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;", table, quoteIdent(ix.Name))
		}
	}
	// An index of our own: the primary key makes it unique, and all its
	// columns must be NOT NULL.
	own := slices.Clone(t.PrimaryKey)
	for _, col := range columns {
		if !slices.Contains(own, col) {
			own = append(own, col)
		}
	}
	notNull := !slices.ContainsFunc(own, func(name string) bool {
		col := t.Column(name)
		return col == nil || !col.NotNull && !slices.Contains(t.PrimaryKey, name) || !indexable(col)
	})
	if len(t.PrimaryKey) > 0 && notNull && t.Kind != 'p' && len(own) <= 32 {
		name := quoteIdent(t.Name + "_lethe")
		quoted := make([]string, len(own))
		for i, col := range own {
			quoted[i] = quoteIdent(col)
		}
		return fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY %s ON %s (%s); ALTER TABLE %s REPLICA IDENTITY USING INDEX %s;",
			name, table, strings.Join(quoted, ", "), table, name)
	}
	return fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL;", table)
}

// deferredKey reports whether the primary key is one that identifies no row in
// the log, because it is checked late.
func deferredKey(t *TableInfo) bool {
	return slices.ContainsFunc(t.Indexes, func(ix IndexInfo) bool {
		return ix.Deferrable && slices.Equal(ix.Columns, t.PrimaryKey)
	}) && !slices.ContainsFunc(t.Indexes, func(ix IndexInfo) bool {
		return !ix.Deferrable && slices.Equal(ix.Columns, t.PrimaryKey)
	})
}

// conditionFix is for conditions only: the rule is right without it, it acts
// more often than it need.
func conditionFix(t *TableInfo) string {
	return fmt.Sprintf("nothing has to be done unless the rule acts too often; then ALTER TABLE %s REPLICA IDENTITY FULL;", quoteTable(t))
}

func usable(t *TableInfo, ix IndexInfo) bool {
	if !ix.Unique || ix.Partial || ix.Deferrable || ix.Expressions || len(ix.Columns) == 0 {
		return false
	}
	return !slices.ContainsFunc(ix.Columns, func(name string) bool {
		col := t.Column(name)
		return col == nil || !col.NotNull && !slices.Contains(t.PrimaryKey, name)
	})
}

func covers(columns, need []string) bool {
	return !slices.ContainsFunc(need, func(n string) bool { return !slices.Contains(columns, n) })
}

// indexable keeps out of a proposed index what may not fit: an index row has
// room for 2,704 bytes, and from then on the application's own inserts of longer
// values would fail. Types without a default btree class are among these.
func indexable(col *ColumnInfo) bool {
	switch col.Type {
	case oidNumeric, oidInet, oidCIDR:
		return true
	case oidVarchar, oidChar:
		_, bound, _ := strings.Cut(strings.TrimSuffix(col.TypeName, ")"), "(")
		n, err := strconv.Atoi(bound)
		return err == nil && n <= indexedChars
	}
	return !col.Toastable
}

// indexedChars is how many characters a column of a proposed index may have, of
// up to four bytes each: two such columns and a key fit.
const indexedChars = 300

func quoteTable(t *TableInfo) string { return quoteIdent(t.Schema) + "." + quoteIdent(t.Name) }

// QuoteIdent quotes a name where Postgres would fold or refuse it.
func QuoteIdent(s string) string { return quoteIdent(s) }

// quoteIdent quotes a name where Postgres would fold or refuse it.
func quoteIdent(s string) string {
	plain := s != "" && !('0' <= s[0] && s[0] <= '9')
	for i := 0; i < len(s); i++ {
		if c := s[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_') {
			plain = false
		}
	}
	if plain && !reserved[s] {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// reserved words, of SQL in every place or where a column could stand.
var reserved = map[string]bool{
	"all": true, "analyse": true, "analyze": true, "and": true, "any": true, "array": true, "as": true, "asc": true,
	"asymmetric": true, "authorization": true, "binary": true, "both": true, "case": true, "cast": true, "check": true,
	"collate": true, "collation": true, "column": true, "concurrently": true, "constraint": true, "create": true,
	"cross": true, "current_catalog": true, "current_date": true, "current_role": true, "current_schema": true,
	"current_time": true, "current_timestamp": true, "current_user": true, "default": true, "deferrable": true,
	"desc": true, "distinct": true, "do": true, "else": true, "end": true, "except": true, "false": true, "fetch": true,
	"for": true, "foreign": true, "freeze": true, "from": true, "full": true, "grant": true, "group": true,
	"having": true, "ilike": true, "in": true, "initially": true, "inner": true, "intersect": true, "into": true,
	"is": true, "isnull": true, "join": true, "lateral": true, "leading": true, "left": true, "like": true,
	"limit": true, "localtime": true, "localtimestamp": true, "natural": true, "not": true, "notnull": true,
	"null": true, "offset": true, "on": true, "only": true, "or": true, "order": true, "outer": true, "overlaps": true,
	"placing": true, "primary": true, "references": true, "returning": true, "right": true, "select": true,
	"session_user": true, "similar": true, "some": true, "symmetric": true, "system_user": true, "table": true,
	"tablesample": true, "then": true, "to": true, "trailing": true, "true": true, "union": true, "unique": true,
	"user": true, "using": true, "variadic": true, "verbose": true, "when": true, "where": true, "window": true,
	"with": true,
}
