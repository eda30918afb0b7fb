package warmer

import (
	"fmt"

	"github.com/jackc/pgx/v5/pgtype"
)

// appendArray turns Postgres's text form of an array, {1,NULL,"a b",{2}}, into
// a JSON array.
func appendArray(dst []byte, types *pgtype.Map, element uint32, text []byte) ([]byte, error) {
	p := arrayParser{text: text, types: types, element: element}
	// Bounds other than 1 come first: [0:1]={...}.
	if len(text) > 0 && text[0] == '[' {
		for p.pos < len(text) && text[p.pos] != '=' {
			p.pos++
		}
		p.pos++
	}
	dst, err := p.array(dst)
	if err == nil && p.pos != len(text) {
		err = p.malformed()
	}
	if err != nil {
		return nil, err
	}
	return dst, nil
}

type arrayParser struct {
	text    []byte
	pos     int
	types   *pgtype.Map
	element uint32
}

func (p *arrayParser) malformed() error {
	return fmt.Errorf("array %q is malformed at byte %d", p.text, p.pos)
}

func (p *arrayParser) peek() byte {
	if p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *arrayParser) array(dst []byte) ([]byte, error) {
	if p.peek() != '{' {
		return nil, p.malformed()
	}
	p.pos++
	dst = append(dst, '[')
	if p.peek() == '}' {
		p.pos++
		return append(dst, ']'), nil
	}
	for {
		var err error
		if p.peek() == '{' {
			dst, err = p.array(dst)
		} else {
			dst, err = p.value(dst)
		}
		if err != nil {
			return nil, err
		}
		switch p.peek() {
		case ',':
			p.pos++
			dst = append(dst, ',')
		case '}':
			p.pos++
			return append(dst, ']'), nil
		default:
			return nil, p.malformed()
		}
	}
}

func (p *arrayParser) value(dst []byte) ([]byte, error) {
	if p.peek() == '"' {
		p.pos++
		value := []byte{}
		for {
			c := p.peek()
			if p.pos >= len(p.text) {
				return nil, p.malformed()
			}
			p.pos++
			switch c {
			case '"':
				return appendValue(dst, p.types, p.element, value)
			case '\\':
				if p.pos >= len(p.text) {
					return nil, p.malformed()
				}
				c = p.text[p.pos]
				p.pos++
			}
			value = append(value, c)
		}
	}
	start := p.pos
	for p.pos < len(p.text) && p.text[p.pos] != ',' && p.text[p.pos] != '}' {
		p.pos++
	}
	value := p.text[start:p.pos]
	if len(value) == 0 {
		return nil, p.malformed()
	}
	if string(value) == "NULL" {
		value = nil
	}
	return appendValue(dst, p.types, p.element, value)
}

// appendLiteral appends values as the text form of a Postgres array of any
// type: the server parses it as what the statement asks for.
func appendLiteral(dst []byte, values []string) []byte {
	dst = append(dst, '{')
	for i, v := range values {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		for j := 0; j < len(v); j++ {
			if v[j] == '"' || v[j] == '\\' {
				dst = append(dst, '\\')
			}
			dst = append(dst, v[j])
		}
		dst = append(dst, '"')
	}
	return append(dst, '}')
}
