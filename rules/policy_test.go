package rules_test

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

// Without a schema a table has the tenant's column if some rule uses it.
func TestTenantOffline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		when string
		want int
	}{{"", 0}, {`, when: new.account > 3`, 1}} {
		set, err := rules.Parse("rules.yaml", []byte("version: 1\nnamespace: shop\nlint: {tenant: account}\nrules:\n"+
			"  - {name: a, table: notes, keys: ['note:{id}']}\n  - {name: b, table: others, keys: ['other:{id}']}\n"+
			"  - {name: c, table: notes, tags: ['notes']"+c.when+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range set.Lint() {
			if f.Code == rules.CodeTenant {
				got = append(got, f.String())
			}
		}
		if len(got) != c.want || c.want == 1 && !strings.HasPrefix(got[0], `rules.yaml:5:37: rule "a": key "note:{id}" lacks "account"`) {
			t.Errorf("rules that say %q: found %q, want %d", c.when, got, c.want)
		}
	}
}

// lint.key: a template passes if one choice of samples does; each placeholder
// has its own sample as long as there are four at most.
func TestPolicyKeyMatches(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key, template string
		want          bool
	}{
		{`^product:\d+:[a-z]{2}$`, "product:{id}:{lang}", true},
		{`^product:\d+:[a-z]{2}$`, "product:{lang}:{id}", true}, // the expression knows no columns
		{`^product:\d+$`, "product:{id}:{lang}", false},
		{`^day:\d{4}-\d\d-\d\d:[0-9a-f-]{36}:1:a$`, "day:{a}:{b}:{c}:{d}", true},
		{`^day:\d{4}-\d\d-\d\d:[0-9a-f-]{36}:1:a:1$`, "day:{a}:{b}:{c}:{d}:{e}", false}, // five: all alike
		{`^x:1:1:1:1:1$`, "x:{a}:{b}:{c}:{d}:{e}", true},
		{`^x:(en:?){5}$`, "x:{a}:{b}:{c}:{d}:{e}", true},
		{`product`, "shop-products", true}, // anchored only where it says so
		{`^[a-z]+$`, "{{braces}}", false},
		{`^{braces}$`, "{{braces}}", true},
		{`^shop:`, "product:{id}", false}, // the namespace is no part of the name
	} {
		set, err := rules.Parse("rules.yaml", []byte("version: 1\nnamespace: shop\nlint: {key: '"+c.key+"'}\nrules: [{name: a, table: t, tags: ['"+c.template+"']}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		got := true
		for _, f := range set.Lint() {
			got = got && f.Code != rules.CodePolicyName
		}
		if got != c.want {
			t.Errorf("%s matches %s: %v, want %v", c.key, c.template, got, c.want)
		}
	}
}
