package explain_test

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/internal/harness"
)

const outboxRules = `version: 1
namespace: shop
entries:
  user: {key: "user:{id}"}
  product: {key: "product:{id}"}
  profile: {key: "profile:{id}"}
rules:
  - name: mail
    table: public.outbox
    on: [insert]
    when: new.type == "UserEmailUpdated" && new.payload.user_id != null
    keys: ["user:{payload.user_id}"]
  - name: order
    table: public.outbox
    on: [insert]
    when: new.type == "OrderPlaced"
    keys: ["product:{payload.items[*].product_id}"]
    tags: ["day:{payload.placed|date}"]
  - name: labels
    table: public.articles
    when: '!("draft" in new.labels)'
    tags: ["label:{labels[*]}"]
dependencies:
  - {of: "user:{id}", also: ["profile:{id}"]}
`

const outboxCases = `cases:
  - name: an event of a user
    change: {table: outbox, op: insert, new: {id: 1, type: UserEmailUpdated, payload: {user_id: 42, mail: a@b}}}
    keys: [user:42]
    cascade: [profile:42]
  - name: an event of another kind
    change: {table: outbox, op: insert, new: {id: 1, type: UserSeen, payload: {user_id: 42}}}
  - name: an event without the member
    change: {table: outbox, op: insert, new: {id: 1, type: UserEmailUpdated, payload: {}}}
  - name: one key for each item
    change: {table: outbox, op: insert, new: {id: 1, type: OrderPlaced, payload: {placed: "2026-11-21T09:00:00Z", items: [{product_id: 7}, {product_id: 8}, {product_id: 7}]}}}
    keys: [product:7, product:8]
    tags: [day:2026-11-21]
  - name: what no name can be made of raises the class
    change: {table: outbox, op: insert, new: {id: 1, type: OrderPlaced, payload: {placed: "2026-11-21", items: [{product_id: {sku: x}}]}}}
    classes: [product]
    tags: [day:2026-11-21]
  - name: labels that go are purged too
    change: {table: articles, op: update, old: {id: 1, labels: [a, b]}, new: {id: 1, labels: [b, c]}, types: {labels: "text[]"}}
    tags: [label:a, label:b, label:c]
  - name: a draft
    change: {table: articles, op: insert, new: {id: 1, labels: [draft, a]}}
`

// An outbox maps its events to keys, by type and by what the payload says.
func TestCasesOfAnOutbox(t *testing.T) {
	t.Parallel()
	e, err := explain.New(parse(t, outboxRules))
	if err != nil {
		t.Fatal(err)
	}
	cases, err := explain.ParseCases("cases.yaml", []byte(outboxCases))
	if err != nil {
		t.Fatal(err)
	}
	for i := range cases.List {
		r, err := e.Run(&cases.List[i], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Failed() {
			t.Errorf("%s: missing %q, unexpected %q", r.Case.Name, r.Missing, r.Unexpected)
		}
	}
}

// SQL that is executed and rolled back shows what an outbox would be mapped to.
func TestServerRunOfAnOutbox(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	exec(t, conn, `CREATE TABLE outbox (id int PRIMARY KEY, type text NOT NULL, payload jsonb NOT NULL); CREATE TABLE articles (id int PRIMARY KEY, labels text[]);
		ALTER TABLE articles REPLICA IDENTITY FULL; INSERT INTO articles VALUES (1, '{a,"b c"}')`)
	set := parse(t, outboxRules)
	schema := liveSchema(t, conn, set)
	if errs := set.Check(*schema).Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	explainer, err := explain.New(set)
	if err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		`INSERT INTO outbox VALUES (1, 'OrderPlaced', '{"placed": "2026-11-21", "items": [{"product_id": 7}, {"product_id": 8}]}')`: "shop:product:7 shop:product:8 shop:day:2026-11-21",
		`UPDATE articles SET labels = '{"b c",d}'`: "shop:label:b c shop:label:d shop:label:a",
	} {
		changes, err := explain.Run(t.Context(), conn, schema, set.Tables(), sql, 0)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
			continue
		}
		var names []string
		for _, c := range changes {
			e, err := explainer.Explain(c)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range e.Steps {
				names = append(names, s.Name)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: got %s, want %s", sql, got, want)
		}
	}
}
