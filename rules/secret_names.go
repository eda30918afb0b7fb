package rules

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// secretWords are what columns are called that hold secrets. A name of several
// words stands with an underscore; words of a column are compared one by one.
var secretWords = []string{"password", "passwd", "passphrase", "pwd", "secret", "token", "ssn", "social_security",
	"api_key", "apikey", "private_key", "access_key", "secret_key", "credit_card", "card_number", "cvv", "cvc", "pin_code", "otp", "credentials",
	"passwords", "passcode", "salt", "totp", "mfa", "jwt", "iban", "signing_key", "encryption_key", "security_code", "recovery_code", "recovery_codes"}

// harmlessEnds are last words that tell something about a secret, not it.
var harmlessEnds = []string{"id", "count", "at", "type", "kind", "length", "limit", "expiry", "expires", "used", "enabled", "required"}

// LooksSecret reports whether a column is called as if it held a secret, which
// no name and no value of a cache should have. It goes by the name alone.
func LooksSecret(column string) bool { return looksSecret(column) }

// looksSecret reports whether a column is called as if it held a secret.
func looksSecret(column string) bool {
	words := splitWords(column)
	if len(words) == 0 || slices.Contains(harmlessEnds, words[len(words)-1]) {
		return false
	}
	joined := "_" + strings.Join(words, "_") + "_"
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(joined, "_"+w+"_") })
}

// splitWords splits api_key, apiKey and APIKey into lower-case words.
func splitWords(name string) []string {
	var words []string
	start := 0
	runes := []rune(name)
	cut := func(end int) {
		if end > start {
			words = append(words, strings.ToLower(string(runes[start:end])))
		}
	}
	for i, r := range runes {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			cut(i)
			start = i + 1
		case i > start && unicode.IsUpper(r) && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])):
			cut(i)
			start = i
		}
	}
	cut(len(runes))
	return words
}

// sqlName finds identifiers; what stands in quotes of text or in comments is
// skipped, @name is a parameter.
var sqlName = regexp.MustCompile(`'(?:[^']|'')*'|--[^\n]*|(?s:/\*.*?\*/)|@[A-Za-z_]\w*|"((?:[^"]|"")*)"|([A-Za-z_]\w*)`)

// secretsInSQL lists the names in a statement that look secret, each once. Names
// of functions are not told apart, nor is * looked behind.
func secretsInSQL(sql string) []string {
	var out []string
	for _, m := range sqlName.FindAllStringSubmatch(sql, -1) {
		name := m[1] + m[2]
		if name != "" && looksSecret(name) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// hashed reports whether a name carries only the hash of a value.
func hashed(filters []keytext.Filter) bool {
	return slices.Contains(filters, keytext.Hash)
}

// secretNames finds columns that look secret where they would be read by whoever
// reads the cache: in names, which stand in logs and metrics too, and in values.
func (l *linter) secretNames() {
	look := func(s subject, list ...*Template) {
		l.subject = s
		for _, t := range list {
			for i := range t.Segments() {
				seg := &t.Segments()[i]
				member := func(step keytext.Step) bool { return looksSecret(step.Key) }
				if (looksSecret(seg.Column) || slices.ContainsFunc(seg.Path, member)) && !hashed(seg.Filters) {
					l.warn(CodeSecret, t.segmentPlace(seg), "name it by an id, or by a hash: {"+placeholderText(seg)+"|hash}",
						"%q looks like a secret: names stand in Redis, logs and metrics for everybody to read", seg.Source())
				}
			}
		}
	}
	for _, c := range l.set.Entries {
		look(subject{entry: c.Name}, slices.Concat([]*Template{c.Key}, c.Tags, c.Prefetch)...)
		if c.Load == nil {
			continue
		}
		for _, name := range secretsInSQL(c.Load.SQL) {
			l.warn(CodeSecret, c.Load.pos, "leave the column out of the value, and read it from the database where it is needed",
				"load.sql: %q looks like a secret, which values in Redis do not keep", name)
		}
	}
	for _, r := range l.set.Rules {
		look(subject{rule: r.Name}, r.templates()...)
	}
	l.subject = subject{}
}
