package client

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// KeyMax is how long a key or a tag may be, in bytes, without the namespace. A
// longer one is most likely a value.
const KeyMax = 4096

// ErrKey is in the errors of keys and tags that may not be used: empty, longer
// than KeyMax, with control characters, or against Options.KeyPattern.
var ErrKey = errors.New("not a usable name")

// checkKey refuses what can not be a key, or a tag.
func checkKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: it is empty", ErrKey)
	}
	if len(key) > KeyMax {
		return fmt.Errorf("%w: it has %d bytes, %d may be: hash what is long", ErrKey, len(key), KeyMax)
	}
	for i, r := range key {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%w: byte %d is the control character %q: escape what comes from outside, in rules.yaml as {name|urlencode}", ErrKey, i, r)
		}
		if r == utf8.RuneError && !utf8.ValidString(key[i:]) {
			return fmt.Errorf("%w: from byte %d on it is not UTF-8: encode what is binary", ErrKey, i)
		}
	}
	return nil
}

// checkName is checkKey and the application's own rule.
func (c *Client) checkName(name string) error {
	if err := checkKey(name); err != nil {
		return err
	}
	if p := c.opts.KeyPattern; p != nil && !p.MatchString(name) {
		return fmt.Errorf("%w: %q does not match Options.KeyPattern, %s", ErrKey, name, p)
	}
	return nil
}

// lintKey warns of a key from which its class can not be told; once, because
// where there is one there are many. A class with a KeyTemplate has said what
// its keys are.
func (c *Client) lintKey(cl *class, key string) {
	if cl.key != nil || strings.HasPrefix(key, cl.name+":") || cl.linted.Swap(true) {
		return
	}
	c.logger.Warn("a key does not begin with its class: DependsOn will not know it, and people will not either",
		"class", cl.name, "key", key,
		"fix", fmt.Sprintf(`begin keys with "%s:", or give the class KeyTemplate, as in rules.yaml`, cl.name))
}
