package explain_test

import (
	"testing"

	"github.com/lethe-cache/lethe/explain"
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
