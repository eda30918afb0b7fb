package keytext

import (
	"reflect"
	"strings"
)

// appendArray prints an array as array_out does: elements in braces, with
// quotes where one is empty, is NULL spelled out, or has a character with a
// meaning.
func appendArray(dst []byte, rv reflect.Value) ([]byte, bool, error) {
	dst = append(dst, '{')
	for i := range rv.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		elem := rv.Index(i)
		text, null, err := AppendValue(nil, elem.Interface())
		switch {
		case err != nil:
			return dst, false, err
		case null:
			dst = append(dst, "NULL"...)
		case nested(elem):
			dst = append(dst, text...)
		default:
			dst = appendElement(dst, string(text))
		}
	}
	return append(dst, '}'), false, nil
}

func nested(v reflect.Value) bool {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Slice && v.Kind() != reflect.Array {
		return false
	}
	return v.Type().Elem().Kind() != reflect.Uint8
}

func appendElement(dst []byte, s string) []byte {
	if s != "" && !strings.EqualFold(s, "null") && !strings.ContainsAny(s, "{},\"\\ \t\n\r\v\f") {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}
