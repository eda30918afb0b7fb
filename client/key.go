package client

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// Date stands for a column of type date in the params of Key.
type Date = keytext.Date

// Timestamp stands for a column of type timestamp (without time zone) in the
// params of Key; a bare time.Time stands for one of type timestamptz.
type Timestamp = keytext.Timestamp

// ErrNoKeyTemplate is returned by Key where the class has no KeyTemplate.
var ErrNoKeyTemplate = errors.New("the class has no KeyTemplate")

// KeyTemplate gives the class the template of its keys, as `key` of the entry
// in rules.yaml, so that Key can render them. A key of another form is then an
// error of every call: it would not be invalidated by the rules of the class.
func KeyTemplate(template string) Option {
	return func(c *class) error {
		t, err := keytext.Parse(template)
		if err != nil {
			return fmt.Errorf("KeyTemplate %q: %w", template, err)
		}
		for _, s := range t.Segments() {
			if s.Side != keytext.Both {
				return fmt.Errorf("KeyTemplate %q: {old.%s} and {new.%s} are for rules, an entry has one row", template, s.Column, s.Column)
			}
			if s.Lookup {
				return fmt.Errorf("KeyTemplate %q: {%s} is looked up, which is for rules", template, s.Source())
			}
			if len(s.Path) > 0 {
				return fmt.Errorf("KeyTemplate %q: {%s} reaches into a column, which is for rules", template, s.Source())
			}
		}
		c.key = &keyTemplate{Template: t, columns: t.Columns()}
		return nil
	}
}

// Key renders the key of an entry, without the namespace, from the template of
// KeyTemplate, by the same code as the rules do: a key that differed from the
// worker's by a byte would never be invalidated. params are
//
//   - a struct, or a pointer to one: the field for {id} is the one with the tag
//     `db:"id"`, else `json:"id"`, else the one whose name is id but for case
//     and underscores (ProductID for {product_id}); embedded structs count as
//     Go counts them;
//   - a map with string keys: its value under "id";
//   - anything else, if the template has one placeholder only (which may stand
//     there several times): its value.
//
// Values are printed as Postgres prints them, in UTC: integers and floats,
// bool (t, f), string kinds as they are, [16]byte as uuid, []byte as bytea,
// time.Time as timestamptz, Timestamp, Date, netip.Addr and Prefix, slices as
// arrays, *big.Int, pointers to these, and what a driver.Valuer returns. A
// field of type time.Time whose column is no timestamptz needs Timestamp or
// Date instead.
//
// It is an error if a placeholder has no value, or if the value is nil: rules
// build no key from NULL either.
func (e *Class[T]) Key(params any) (string, error) {
	if e.err != nil {
		return "", e.err
	}
	if e.cl.key == nil {
		return "", fmt.Errorf("key of entries %q: %w", e.cl.name, ErrNoKeyTemplate)
	}
	key, err := e.cl.key.render(params)
	if err != nil {
		return "", fmt.Errorf("key of entries %q: %w", e.cl.name, err)
	}
	return key, nil
}

// keyTemplate renders and recognises the keys of a class.
type keyTemplate struct {
	*keytext.Template
	columns []string
	plans   sync.Map // reflect.Type of a struct -> map[string][]int by column
}

func (k *keyTemplate) render(params any) (string, error) {
	value, err := k.values(params)
	if err != nil {
		return "", err
	}
	// Looked up first, so that the error can name what there is instead.
	values := make(map[string]any, len(k.columns))
	for _, column := range k.columns {
		v, err := value(column)
		if err != nil {
			return "", fmt.Errorf("%q: %w", k, err)
		}
		if isNil(v) {
			return "", fmt.Errorf("%q: the value of {%s} is nil: there is no such key", k, column)
		}
		values[column] = v
	}
	key, ok, err := k.Render(func(column string) (any, bool) { v, ok := values[column]; return v, ok })
	if err == nil && !ok { // a Valuer, or a pointer to nil
		err = fmt.Errorf("%q: a value is NULL: there is no such key", k)
	}
	return key, err
}

// values is how a parameter is found by its placeholder.
func (k *keyTemplate) values(params any) (func(column string) (any, error), error) {
	v := reflect.ValueOf(params)
	if !isValue(params) {
		for v.Kind() == reflect.Pointer && !v.IsNil() && !isValue(v.Interface()) {
			v = v.Elem()
		}
		switch {
		case v.Kind() == reflect.Struct && !isValue(v.Interface()):
			return func(column string) (any, error) { return k.field(v, column) }, nil
		case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String:
			return func(column string) (any, error) { return entry(v, column) }, nil
		}
	}
	if len(k.columns) > 1 {
		return nil, fmt.Errorf("%q has %d placeholders: want a struct or a map, got %T (nil: %v)", k, len(k.columns), params, isNil(params))
	}
	return func(string) (any, error) { return params, nil }, nil
}

// isValue reports whether something that is a struct, or a pointer to one, is
// a single value all the same.
func isValue(v any) bool {
	switch v.(type) {
	case time.Time, Date, Timestamp, netip.Addr, netip.Prefix, *big.Int,
		*time.Time, *Date, *Timestamp, *netip.Addr, *netip.Prefix, driver.Valuer:
		return true
	}
	return false
}

func isNil(v any) bool {
	if v == nil {
		return true
	}
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return rv.IsNil()
	}
	return false
}

func entry(m reflect.Value, column string) (any, error) {
	if v := m.MapIndex(reflect.ValueOf(column).Convert(m.Type().Key())); v.IsValid() {
		return v.Interface(), nil
	}
	var have []string
	for _, k := range m.MapKeys() {
		have = append(have, k.String())
	}
	slices.Sort(have)
	return nil, fmt.Errorf("no value for {%s} among %q", column, have)
}

// field is the value of a struct's field for a placeholder; nil behind an
// embedded pointer that is nil.
func (k *keyTemplate) field(v reflect.Value, column string) (any, error) {
	plan, ok := k.plans.Load(v.Type())
	if !ok {
		plan, _ = k.plans.LoadOrStore(v.Type(), fieldsOf(v.Type(), k.columns))
	}
	index, ok := plan.(map[string][]int)[column]
	if !ok {
		return nil, fmt.Errorf("%s has no exported field for {%s}: want one tagged `db:%q` or `json:%q`, or of that name", v.Type(), column, column, column)
	}
	f, err := v.FieldByIndexErr(index)
	if err != nil {
		return nil, nil //nolint:nilerr // what is not there is NULL
	}
	return f.Interface(), nil
}

// fieldsOf finds the field of each column: by tag, then by name.
func fieldsOf(t reflect.Type, columns []string) map[string][]int {
	byTag, byName := map[string][]int{}, map[string][]int{}
	note := func(m map[string][]int, name string, index []int) {
		if have, ok := m[name]; !ok || len(index) < len(have) {
			m[name] = index
		}
	}
	json := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous && f.Type.Kind() == reflect.Struct {
			continue
		}
		if name, _, _ := strings.Cut(f.Tag.Get("db"), ","); name != "" && name != "-" {
			note(byTag, name, f.Index)
		}
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			note(json, name, f.Index)
		}
		note(byName, folded(f.Name), f.Index)
	}
	for name, index := range json {
		if _, ok := byTag[name]; !ok {
			byTag[name] = index
		}
	}
	out := maps.Clone(byTag)
	for _, c := range columns {
		if _, ok := out[c]; !ok {
			if index, ok := byName[folded(c)]; ok {
				out[c] = index
			}
		}
	}
	return out
}

func folded(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// checkKey refuses what the rules of the class would not build.
func (e *Class[T]) checkKey(key string) error {
	if err := e.c.checkName(key); err != nil {
		return err
	}
	e.c.lintKey(e.cl, key)
	k := e.cl.key
	if k == nil || k.Pattern().Match([]byte(key)) {
		return nil
	}
	if local, ok := strings.CutPrefix(key, e.c.prefix); ok && e.c.prefix != "" && k.Pattern().Match([]byte(local)) {
		return fmt.Errorf("%w: it is not of the form %q: keys are written without the namespace", ErrKey, k)
	}
	return fmt.Errorf("%w: it is not of the form %q", ErrKey, k)
}
