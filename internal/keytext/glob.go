package keytext

// Glob is a pattern in the syntax of Redis's SCAN and KEYS: * and ?, sets such
// as [a-c] and [^x], and \ before what is to have no meaning. It is immutable
// and safe for concurrent use.
type Glob struct {
	text  string
	parts []part
}

// part is one byte of a set, or any number of them.
type part struct {
	set  *[256]bool // nil is every byte
	star bool
}

func (p part) has(c byte) bool { return p.set == nil || p.set[c] }

// ParseGlob reads a pattern as Redis does, which refuses none: a set that does
// not end goes to the end, and a \ that nothing follows is one.
func ParseGlob(text string) *Glob {
	g := &Glob{text: text}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case '*':
			if n := len(g.parts); n == 0 || !g.parts[n-1].star {
				g.parts = append(g.parts, part{star: true})
			}
		case '?':
			g.parts = append(g.parts, part{})
		case '[':
			var set [256]bool
			i = globSet(text, i+1, &set)
			g.parts = append(g.parts, part{set: &set})
		default:
			if c == '\\' && i+1 < len(text) {
				i++
			}
			g.parts = append(g.parts, byteOf(text[i]))
		}
	}
	return g
}

func byteOf(c byte) part {
	var set [256]bool
	set[c] = true
	return part{set: &set}
}

// globSet reads the set whose first byte is at i, and returns where it ends.
func globSet(text string, i int, set *[256]bool) (end int) {
	not := i < len(text) && text[i] == '^'
	if not {
		i++
	}
	for ; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text):
			i++
			set[text[i]] = true
			continue
		case text[i] == ']':
		case i+2 < len(text) && text[i+1] == '-':
			from, to := min(text[i], text[i+2]), max(text[i], text[i+2])
			for c := int(from); c <= int(to); c++ {
				set[c] = true
			}
			i += 2
			continue
		default:
			set[text[i]] = true
			continue
		}
		break
	}
	if not {
		for c := range set {
			set[c] = !set[c]
		}
	}
	return i
}

// String is the pattern as it was written.
func (g *Glob) String() string { return g.text }

// Prefix is the literal text that every name begins with.
func (g *Glob) Prefix() string {
	var prefix []byte
	for _, p := range g.parts {
		if p.star || p.set == nil {
			break
		}
		n, at := 0, byte(0)
		for c, in := range p.set {
			if in {
				n, at = n+1, byte(c)
			}
		}
		if n != 1 {
			break
		}
		prefix = append(prefix, at)
	}
	return string(prefix)
}

// Match reports whether a name matches, by the bytes, as in Redis.
func (g *Glob) Match(name string) bool {
	// back is the last star, and the byte of name up to which it reaches.
	i, back, upTo := 0, -1, 0
	for at := 0; at < len(name); {
		switch {
		case i < len(g.parts) && g.parts[i].star:
			back, upTo = i, at
			i++
			continue
		case i < len(g.parts) && g.parts[i].has(name[at]):
			i, at = i+1, at+1
			continue
		case back < 0:
			return false
		}
		upTo++
		i, at = back+1, upTo
	}
	for i < len(g.parts) && g.parts[i].star {
		i++
	}
	return i == len(g.parts)
}

// Intersects reports whether some name, put behind a literal prefix, has the
// form of the pattern and matches the glob too. It is exact where Match of the
// pattern is: what a placeholder can not hold is left out (a colon, in all but
// the last), and nothing else.
func (p *Pattern) Intersects(prefix string, g *Glob) bool {
	var parts []part
	literal := func(text string) {
		for i := 0; i < len(text); i++ {
			parts = append(parts, byteOf(text[i]))
		}
	}
	literal(prefix)
	last := len(p.literals) - 1
	for i, lit := range p.literals {
		literal(lit)
		if i == last {
			break
		}
		value := part{}
		if i < last-1 {
			var set [256]bool
			for c := range set {
				set[c] = c != ':'
			}
			value.set = &set
		}
		parts = append(parts, value, part{set: value.set, star: true})
	}
	return intersect(parts, g.parts)
}

// intersect walks both automata at once: from a pair of places on to every pair
// that one byte leads to, which both must allow, or that a star is left by.
func intersect(a, b []part) bool {
	type pair struct{ i, j int }
	seen := make([]bool, (len(a)+1)*(len(b)+1))
	todo := []pair{{0, 0}}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		n := at.i*(len(b)+1) + at.j
		if seen[n] {
			continue
		}
		seen[n] = true
		if at.i == len(a) && at.j == len(b) {
			return true
		}
		if at.i < len(a) && a[at.i].star {
			todo = append(todo, pair{at.i + 1, at.j})
		}
		if at.j < len(b) && b[at.j].star {
			todo = append(todo, pair{at.i, at.j + 1})
		}
		if at.i == len(a) || at.j == len(b) || !meet(a[at.i], b[at.j]) {
			continue
		}
		next := at
		if !a[at.i].star {
			next.i++
		}
		if !b[at.j].star {
			next.j++
		}
		todo = append(todo, next)
	}
	return false
}

// meet reports whether some byte is in both.
func meet(a, b part) bool {
	for c := range 256 {
		if a.has(byte(c)) && b.has(byte(c)) {
			return true
		}
	}
	return false
}
