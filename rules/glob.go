package rules

import "github.com/lethe-cache/lethe/internal/keytext"

// ClassesOfGlob returns the classes of which a key may match a glob of SCAN's
// syntax, which is written without the namespace. No class is left out of which
// one does; one may be in it whose keys that match all belong to another, with a
// longer literal prefix.
func (s *Set) ClassesOfGlob(glob string) []*Class {
	g := keytext.ParseGlob(glob)
	var classes []*Class
	for _, c := range s.Entries {
		if c.Key.Pattern().Intersects("", g) {
			classes = append(classes, c)
		}
	}
	return classes
}
