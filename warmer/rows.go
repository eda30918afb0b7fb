package warmer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// read stores each row under the names that it renders to. The last hidden
// columns are for tags and no part of the value.
func (r *request) read(rows pgx.Rows, hidden, from, to int) error {
	// The columns are known, and errors of the statement show, from here on.
	more := rows.Next()
	if err := rows.Err(); err != nil {
		return err
	}
	wanted := make(map[string][]int, to-from)
	for i := from; i < to; i++ {
		r.values[i], r.tags[i] = nil, nil
		if r.ok[i] {
			bare := string(r.class.Unversioned([]byte(r.names[i])))
			wanted[bare] = append(wanted[bare], i)
		}
	}
	columns := make([]column, 0, 8)
	for _, f := range rows.FieldDescriptions() {
		columns = append(columns, newColumn(f.Name, f.DataTypeOID))
	}
	if err := r.identifies(columns); err != nil {
		return err
	}
	types := rows.Conn().TypeMap()
	for ; more; more = rows.Next() {
		raw := rows.RawValues()
		value := func(name string) (any, bool) {
			i := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
			if i < 0 {
				return nil, false
			}
			if raw[i] == nil {
				return nil, true
			}
			return string(raw[i]), true
		}
		name, ok, err := r.class.Key.Render(value)
		if err != nil {
			return fmt.Errorf("render key %q: %w", r.class.Key, err)
		}
		at := wanted[r.set.FullName(name)]
		if !ok || len(at) == 0 {
			continue // a row that nobody asked for
		}
		object, err := appendObject(nil, types, columns[:len(columns)-hidden], raw)
		if err != nil {
			return err
		}
		tags, err := r.render(value)
		if err != nil {
			return err
		}
		for _, i := range at {
			if r.values[i] != nil {
				return fmt.Errorf("two rows have the key %q: the loader must return one row for each key", r.names[i])
			}
			r.values[i], r.tags[i] = object, tags
		}
	}
	return nil
}

// errLoadSQL: the rows of load.sql lack what entries are stored under, whatever
// the data.
var errLoadSQL = errors.New("load.sql does not fit its entry")

// identifies makes sure that the rows say which entry they belong to.
func (r *request) identifies(columns []column) error {
	for _, p := range r.class.Key.Placeholders() {
		if !slices.ContainsFunc(columns, func(c column) bool { return c.name == p }) {
			return fmt.Errorf("%w: it returns no column %q, which the key %q needs to tell the rows apart", errLoadSQL, p, r.class.Key)
		}
	}
	return nil
}

// render builds the tags of a row. One with a NULL placeholder is none.
func (r *request) render(value func(string) (any, bool)) ([]string, error) {
	var tags []string
	for _, t := range r.class.Tags {
		tag, ok, err := t.Render(value)
		if err != nil {
			return nil, fmt.Errorf("%w: tag %w", errLoadSQL, err)
		}
		if ok {
			tags = append(tags, r.set.FullName(tag))
		}
	}
	return tags, nil
}
