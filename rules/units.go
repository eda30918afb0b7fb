package rules

import (
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
)

// Unit is a piece of a set that decides which entries changes invalidate. Two
// sets with the same units invalidate the same; what is only in one of them is
// what a reload has to think of.
type Unit struct {
	// ID is a hash of everything that matters in the unit: not its name, place
	// or comments, nor what is done with the entries.
	ID uint64
	// What names the unit for people: rule "a", entry "b", dependency of "c:{id}".
	What string
	// Classes are those whose entries it invalidates, or whose names it shapes;
	// All says that others may be among them, since clients may name any tag.
	Classes []*Class
	All     bool
	// Declared says that rows of lethe.dependencies say it, not the file.
	Declared bool
	// Timed is the rule if it has At: what it would have scheduled before has to
	// be read from its table.
	Timed *Rule
}

// Units returns the pieces of the set: its rules, entries and dependencies in
// the order of the file.
func (s *Set) Units() []Unit {
	var out []Unit
	for _, r := range s.Rules {
		out = append(out, s.unitOf(r))
	}
	for _, c := range s.Entries {
		out = append(out, Unit{What: fmt.Sprintf("entry %q", c.Name), Classes: []*Class{c}, ID: unitID([]string{
			"entry", c.Name, c.Key.String(), c.Mode.String(), fmt.Sprint(c.Versions), strings.Join(texts(c.Tags), "\x00"),
		})})
	}
	rows := 0
	for _, d := range s.Dependencies {
		if d.ID != 0 {
			rows++
		}
	}
	for _, d := range s.Dependencies {
		if d.ID != 0 && rows > unitsOfDependencies {
			continue
		}
		classes, all := s.reachedBy(d)
		out = append(out, Unit{What: fmt.Sprintf("dependency of %q", d.Of), Classes: classes, All: all, ID: unitID(d.identity()), Declared: d.ID != 0})
	}
	if rows > unitsOfDependencies {
		out = append(out, s.bundles()...)
	}
	return out
}

// UnitsOf returns the identities of the units by which changes invalidate the
// entries of a class, and of that which says what these are called and tagged:
// those of which a reload would raise it. Without what rows of lethe.dependencies
// declare, since what fills entries need not have read them.
func (s *Set) UnitsOf(class *Class) []uint64 {
	var out []uint64
	for _, u := range s.Units() {
		if !u.Declared && (u.All || slices.Contains(u.Classes, class)) {
			out = append(out, u.ID)
		}
	}
	return out
}

// reachedBy returns the classes that may be forgotten because of a dependency.
func (s *Set) reachedBy(d *Dependency) (classes []*Class, all bool) {
	for _, a := range d.Also {
		if a.Class == nil {
			all = true
			for _, c := range s.Carriers(a) {
				classes = addClass(classes, c)
			}
		} else {
			classes = addClass(classes, a.Class)
		}
		more, any := s.Reach(a, CascadeDepthMax)
		all = all || any
		for _, c := range more {
			classes = addClass(classes, c)
		}
	}
	return classes, all
}

// identity is what matters in a dependency.
func (d *Dependency) identity() []string {
	parts := []string{"dependency", d.Of.String(), strings.Join(texts(d.Also), "\x00")}
	if d.When != "" {
		parts = append(parts, d.When)
	}
	return parts
}

// unitsOfDependencies is how many rows of lethe.dependencies are a unit each. Of
// more bundles are: what every partition notes, and compares at every change of
// the rules, must not grow with them. What the file says is never among them: it
// has to be known again by who has not read the table.
const unitsOfDependencies = 1000

// bundles are the declared dependencies as so many units, by what they start from. One
// that is new changes its bundle, and so forgets what any dependency can reach:
// more than it could.
func (s *Set) bundles() []Unit {
	var sums, counts [unitsOfDependencies]uint64
	var classes []*Class
	all := false
	among := map[*Class]bool{}
	for _, d := range s.Dependencies {
		if d.ID == 0 {
			continue
		}
		h := fnv.New64a()
		for _, p := range d.identity() {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
		of := fnv.New64a()
		io.WriteString(of, d.Of.String())
		n := of.Sum64() % unitsOfDependencies
		sums[n] += h.Sum64() // in whatever order they come
		counts[n]++
		for _, a := range d.Also {
			switch {
			case a.Class == nil:
				all = true
			case !among[a.Class]:
				among[a.Class] = true
				classes = append(classes, a.Class)
			}
		}
	}
	var out []Unit
	for n := range sums {
		if counts[n] == 0 {
			continue
		}
		h := fnv.New64a()
		fmt.Fprintf(h, "dependencies:%d:%d:%x", n, counts[n], sums[n])
		out = append(out, Unit{ID: h.Sum64(), What: fmt.Sprintf("%d dependencies", counts[n]), Classes: classes, All: all, Declared: true})
	}
	return out
}

func unitID(parts []string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return h.Sum64()
}

func (s *Set) unitOf(r *Rule) Unit {
	classes, all := s.touchedByRule(r)
	u := Unit{What: fmt.Sprintf("rule %q", r.Name), Classes: classes, All: all}
	parts := []string{"rule", r.QualifiedTable(), r.On.String(), r.When, fmt.Sprintf("{%d %t} %t", r.Cascade.Depth, r.Cascade.Bound, r.Strict), strings.Join(texts(r.Keys), "\x00")}
	for _, tags := range r.Tags {
		parts = append(parts, strings.Join(texts(tags.All), "\x00"))
	}
	if r.Lookup != nil {
		parts = append(parts, "lookup", r.Lookup.SQL)
	}
	if r.At != "" {
		// What is done with the entries is stored with the schedule.
		u.Timed = r
		parts = append(parts, "at", r.At, r.Action.String())
	}
	u.ID = unitID(parts)
	return u
}

func texts(list []*Template) []string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.String()
	}
	return out
}

// touchedByRule returns the classes that a rule touches, by itself and by the
// cascade.
func (s *Set) touchedByRule(r *Rule) (classes []*Class, all bool) {
	classes, all = s.classesOfRule(r)
	for _, c := range slices.Clone(classes) {
		more, a := s.Reach(c.Key, CascadeDepthMax)
		all = all || a
		for _, m := range more {
			classes = addClass(classes, m)
		}
	}
	return classes, all
}

// Difference tells what became of a set's units: those that are only in next
// were added, a changed one is among both.
func Difference(before, next *Set) (added, removed []string) {
	only := func(a, b *Set) (out []string) {
		there := map[uint64]bool{}
		for _, u := range b.Units() {
			there[u.ID] = true
		}
		for _, u := range a.Units() {
			if !there[u.ID] {
				out = append(out, u.What)
			}
		}
		return out
	}
	return only(next, before), only(before, next)
}
