package rules

import "slices"

// Reach returns the classes that the cascade can come to from a name of the
// form of start, following at most depth dependencies; start's own class is not
// among them unless it is come back to. all is true if a name without a class
// can be reached, a tag among them, whose entries may be of any class.
//
// It works on the forms of names, not on names, and errs on the side of more.
func (s *Set) Reach(start *Template, depth int) (classes []*Class, all bool) {
	frontier := []*Template{start}
	seen := map[*Dependency]bool{}
	for ; depth > 0 && len(frontier) > 0; depth-- {
		var next []*Template
		for _, t := range frontier {
			for _, d := range s.Dependencies {
				if seen[d] || !d.appliesTo(t) {
					continue
				}
				seen[d] = true
				for _, a := range d.Also {
					if a.Class == nil {
						all = true
						for _, c := range s.Carriers(a) {
							classes = addClass(classes, c)
						}
					} else {
						classes = addClass(classes, a.Class)
					}
					next = append(next, a)
				}
			}
		}
		frontier = next
	}
	return classes, all
}

// appliesTo reports whether a name of the form of t may be one that others
// depend on by d.
func (d *Dependency) appliesTo(t *Template) bool {
	if t.Class != nil && d.Of.Class != nil {
		return t.Class == d.Of.Class
	}
	return d.Of.Pattern().Unify(t.Pattern())
}

// TagForm reports whether some entry or rule uses tags of the form of t.
func (s *Set) TagForm(t *Template) bool {
	if len(s.Carriers(t)) > 0 {
		return true
	}
	return slices.ContainsFunc(s.Rules, func(r *Rule) bool {
		return slices.ContainsFunc(r.Tags, func(ts TagSet) bool {
			return slices.ContainsFunc(ts.All, func(o *Template) bool { return o.shape() == t.shape() })
		})
	})
}
