package e2e

import "strings"

// trapTable is every trap of the linter that a live schema shows.
func trapTable() []trap {
	return []trap{
		{
			name: "the replica identity hides the value that a name is left by", code: "L020", says: "leaves its old name behind", subject: "moves",
			schema: []string{`CREATE TABLE moves (id int PRIMARY KEY, category int NOT NULL)`, `INSERT INTO moves VALUES (1, 7), (2, 7), (3, 7)`},
			bad: blocks{entries: `moves: {key: "moves:{category}"}`,
				rules: `- {name: moves, table: public.moves, keys: ["moves:{category}"]}`},
			change: `UPDATE moves SET category = 8 WHERE id = 1`,
			again:  `UPDATE moves SET category = 8 WHERE id = 2; DELETE FROM moves WHERE id = 1`,
			entries: []cached{
				{class: "moves", key: "moves:7", truth: `SELECT count(*)::text FROM moves WHERE category = 7`, bad: stale, good: forgotten},
				{class: "moves", key: "moves:9", truth: `SELECT count(*)::text FROM moves WHERE category = 9`, bad: kept, good: kept},
			},
		},
		{
			name: "the replica identity hides what a deleted row was", code: "L020", says: "leaves its old name behind", subject: "parts",
			schema: []string{`CREATE TABLE parts (id int PRIMARY KEY, whole int)`, `INSERT INTO parts VALUES (1, 7), (2, 7)`},
			bad: blocks{entries: `parts: {key: "parts:{whole}"}`,
				rules: `- {name: parts, table: public.parts, keys: ["parts:{whole}"]}`},
			change: `DELETE FROM parts WHERE id = 1`,
			again:  `DELETE FROM parts WHERE id = 2`,
			entries: []cached{
				{class: "parts", key: "parts:7", truth: `SELECT count(*)::text FROM parts WHERE whole = 7`, bad: stale, good: forgotten},
			},
		},
		{
			name: "changed() of a column whose old value never arrives", code: "L021", says: `changed("price") is always true`, subject: "prices",
			schema: []string{`CREATE TABLE prices (id int PRIMARY KEY, price int, views int)`, `INSERT INTO prices VALUES (1, 10, 0), (2, 10, 0)`},
			bad: blocks{entries: `price: {key: "price:{id}"}`,
				rules: `- {name: prices, table: public.prices, keys: ["price:{id}"], when: 'changed("price")'}`},
			change: `UPDATE prices SET views = views + 1 WHERE id = 1; UPDATE prices SET price = price + 1 WHERE id = 2`,
			again:  `UPDATE prices SET views = views + 1 WHERE id = 1; UPDATE prices SET price = price + 1 WHERE id = 2`,
			entries: []cached{ // an invalidation too many, and none that misses
				{class: "price", key: "price:1", truth: `SELECT price::text FROM prices WHERE id = 1`, bad: lost, good: kept},
				{class: "price", key: "price:2", truth: `SELECT price::text FROM prices WHERE id = 2`, bad: forgotten, good: forgotten},
			},
		},
		{
			name: "a TOASTed column in a key", code: "L022", says: "may be TOASTed", subject: "pages",
			schema: []string{`CREATE TABLE pages (id int PRIMARY KEY, path text NOT NULL, hits int)`, `ALTER TABLE pages ALTER path SET STORAGE EXTERNAL`,
				`INSERT INTO pages VALUES (1, repeat('long', 1000), 0), (2, 'short', 0)`},
			bad: blocks{entries: `page: {key: "page:{path}"}`,
				rules: `- {name: pages, table: public.pages, keys: ["page:{path|hash}"]}`},
			change: `UPDATE pages SET hits = hits + 1 WHERE id = 1`,
			again:  `UPDATE pages SET hits = hits + 1 WHERE id = 1`,
			entries: []cached{ // the class goes for the name that can not be built
				{class: "page", key: pathKey("short"), truth: `SELECT hits::text FROM pages WHERE id = 2`, bad: lost, good: kept},
				{class: "page", key: pathKey(strings.Repeat("long", 1000)), truth: `SELECT hits::text FROM pages WHERE id = 1`, bad: forgotten, good: forgotten},
			},
		},
		{
			name: "an unlogged table", code: "L023", says: "never reach the log", subject: "sessions",
			schema: []string{`CREATE UNLOGGED TABLE sessions (id int PRIMARY KEY, who text)`, `INSERT INTO sessions VALUES (1, 'ann')`},
			bad: blocks{entries: `session: {key: "session:{id}"}`,
				rules: `- {name: sessions, table: public.sessions, keys: ["session:{id}"]}`},
			change:  `UPDATE sessions SET who = 'bob'`,
			again:   `UPDATE sessions SET who = 'cid'`,
			entries: []cached{{class: "session", key: "session:1", truth: `SELECT who FROM sessions WHERE id = 1`, bad: stale, good: forgotten}},
		},
		{
			name: "a rule on one partition", code: "L024", says: "is a partition of public.events", subject: "events",
			schema: []string{`CREATE TABLE events (id int PRIMARY KEY, what text) PARTITION BY RANGE (id)`,
				`CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100)`, `CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (100) TO (200)`,
				`INSERT INTO events VALUES (1, 'a'), (101, 'b')`},
			bad: blocks{entries: `event: {key: "event:{id}"}`,
				rules: `- {name: events, table: public.events_1, keys: ["event:{id}"]}`},
			good: blocks{entries: `event: {key: "event:{id}"}`,
				rules: `- {name: events, table: public.events, keys: ["event:{id}"]}`},
			change: `UPDATE events SET what = what || '!'`,
			again:  `UPDATE events SET what = what || '!'`,
			entries: []cached{
				{class: "event", key: "event:1", truth: `SELECT what FROM events WHERE id = 1`, bad: forgotten, good: forgotten},
				{class: "event", key: "event:101", truth: `SELECT what FROM events WHERE id = 101`, bad: stale, good: forgotten},
			},
		},
		{
			name: "a foreign key that deletes rows of a table without a rule", code: "L025", says: "changes rows of public.reviews with it", subject: "makers",
			schema: []string{`CREATE TABLE makers (id int PRIMARY KEY, name text)`, `INSERT INTO makers VALUES (1, 'one'), (2, 'two')`,
				`CREATE TABLE reviews (id int PRIMARY KEY, maker int REFERENCES makers ON DELETE CASCADE, body text)`, `INSERT INTO reviews VALUES (10, 1, 'good'), (20, 2, 'bad')`},
			bad: blocks{entries: `maker: {key: "maker:{id}"}
				review: {key: "review:{id}"}`,
				rules: `- {name: makers, table: public.makers, keys: ["maker:{id}"]}`},
			good: blocks{entries: `maker: {key: "maker:{id}"}
				review: {key: "review:{id}"}`,
				rules: `- {name: makers, table: public.makers, keys: ["maker:{id}"]}
				- {name: reviews, table: public.reviews, keys: ["review:{id}"]}`},
			change: `DELETE FROM makers WHERE id = 1`,
			again:  `DELETE FROM makers WHERE id = 2`,
			entries: []cached{
				{class: "review", key: "review:10", truth: `SELECT count(*)::text FROM reviews WHERE id = 10`, bad: stale, good: kept},
				{class: "review", key: "review:20", truth: `SELECT count(*)::text FROM reviews WHERE id = 20`, bad: kept, good: forgotten},
			},
		},
		{
			name: "two rules that build one key from different columns", code: "L026", says: "from different columns of public.votes", subject: "slip",
			schema: []string{`CREATE TABLE votes (id int PRIMARY KEY, song int, stars int)`, `INSERT INTO votes VALUES (5, 1, 3), (6, 5, 3)`},
			bad: blocks{entries: `song: {key: "song:{song}"}`,
				rules: `- {name: songs, table: public.votes, on: insert, keys: ["song:{song}"]}
				- {name: slip, table: public.votes, on: update, keys: ["song:{id}"]}`},
			good: blocks{entries: `song: {key: "song:{song}"}`,
				rules: `- {name: songs, table: public.votes, on: insert, keys: ["song:{song}"]}
				- {name: slip, table: public.votes, on: update, keys: ["song:{song}"]}`},
			change: `UPDATE votes SET stars = stars + 1 WHERE id = 5`,
			again:  `UPDATE votes SET stars = stars + 1 WHERE id = 5`,
			entries: []cached{ // vote 5 is of song 1, and song 5 is forgotten
				{class: "song", key: "song:1", truth: `SELECT sum(stars)::text FROM votes WHERE song = 1`, bad: stale, good: forgotten},
				{class: "song", key: "song:5", truth: `SELECT sum(stars)::text FROM votes WHERE song = 5`, bad: lost, good: kept},
			},
		},
		{
			name: "columns that print one value in two ways", code: "L026", says: "the two print differently", subject: "payments",
			schema: []string{`CREATE TABLE accounts (id int PRIMARY KEY, name text)`, `INSERT INTO accounts VALUES (4, 'ann')`,
				`CREATE TABLE payments (id int PRIMARY KEY, account numeric(10,2), account_id int)`, `INSERT INTO payments VALUES (1, 4, 4)`},
			bad: blocks{entries: `account: {key: "account:{id}"}`,
				rules: `- {name: accounts, table: public.accounts, keys: ["account:{id}"]}
				- {name: payments, table: public.payments, on: [insert], keys: ["account:{account}"]}`},
			good: blocks{entries: `account: {key: "account:{id}"}`,
				rules: `- {name: accounts, table: public.accounts, keys: ["account:{id}"]}
				- {name: payments, table: public.payments, on: [insert], keys: ["account:{account_id}"]}`},
			change:  `INSERT INTO payments VALUES (2, 4, 4)`,
			again:   `INSERT INTO payments VALUES (3, 4, 4)`,
			entries: []cached{{class: "account", key: "account:4", truth: `SELECT count(*)::text FROM payments WHERE account_id = 4`, bad: stale, good: forgotten}},
		},
		{
			name: "dependencies in a circle", code: "L027", says: "go in a circle",
			schema: []string{`CREATE TABLE users (id int PRIMARY KEY, name text)`, `CREATE TABLE profiles (id int PRIMARY KEY, text text)`,
				`INSERT INTO users VALUES (1, 'ann')`, `INSERT INTO profiles VALUES (1, 'hello')`},
			bad: blocks{entries: `user: {key: "user:{id}"}
				profile: {key: "profile:{id}"}`,
				rules:        `- {name: profiles, table: public.profiles, keys: ["profile:{id}"]}`,
				dependencies: "- {of: \"user:{id}\", also: [\"profile:{id}\"]}\n- {of: \"profile:{id}\", also: [\"user:{id}\"]}"},
			good: blocks{entries: `user: {key: "user:{id}"}
				profile: {key: "profile:{id}"}`,
				rules:        `- {name: profiles, table: public.profiles, keys: ["profile:{id}"]}`,
				dependencies: `- {of: "user:{id}", also: ["profile:{id}"]}`},
			change: `UPDATE profiles SET text = 'hi'`,
			again:  `UPDATE profiles SET text = 'hey'`,
			entries: []cached{
				{class: "user", key: "user:1", truth: `SELECT name FROM users WHERE id = 1`, bad: lost, good: kept},
				{class: "profile", key: "profile:1", truth: `SELECT text FROM profiles WHERE id = 1`, bad: forgotten, good: forgotten},
			},
		},
		{
			name: "a value that holds the separator", code: "L028", says: `may contain ":"`, subject: "shelves",
			schema: []string{`CREATE TABLE shelves (id int PRIMARY KEY, room text NOT NULL, shelf text NOT NULL, UNIQUE (room, shelf))`,
				`INSERT INTO shelves VALUES (1, 'a:b', 'c'), (2, 'a', 'b:c')`},
			bad: blocks{entries: `shelf: {key: "shelf:{room}:{shelf}"}`,
				rules: `- {name: shelves, table: public.shelves, keys: ["shelf:{room}:{shelf}"]}`},
			good: blocks{entries: `shelf: {key: "shelf:{room}:{shelf}"}`,
				rules: `- {name: shelves, table: public.shelves, keys: ["shelf:{room|urlencode}:{shelf|urlencode}"]}`},
			entries: []cached{ // nothing has to change: the second reader is given the first one's row
				{class: "shelf", key: "shelf:a:b:c", goodKey: "shelf:a%3Ab:c", truth: `SELECT id::text FROM shelves WHERE room = 'a:b'`, bad: kept, good: kept},
				{class: "shelf", key: "shelf:a:b:c", goodKey: "shelf:a:b%3Ac", truth: `SELECT id::text FROM shelves WHERE room = 'a'`, bad: stale, good: kept},
			},
		},
		{
			name: "placeholders with nothing between them", code: "L028", says: "nothing between them", subject: "seats",
			schema: []string{`CREATE TABLE seats (row int, seat int, who text, PRIMARY KEY (row, seat))`, `INSERT INTO seats VALUES (1, 23, 'ann'), (12, 3, 'bob')`},
			bad: blocks{entries: `seat: {key: "seat:{row}{seat}"}`,
				rules: `- {name: seats, table: public.seats, keys: ["seat:{row}{seat}"]}`},
			good: blocks{entries: `seat: {key: "seat:{row}:{seat}"}`,
				rules: `- {name: seats, table: public.seats, keys: ["seat:{row}:{seat}"]}`},
			entries: []cached{
				{class: "seat", key: "seat:123", goodKey: "seat:1:23", truth: `SELECT who FROM seats WHERE row = 1`, bad: kept, good: kept},
				{class: "seat", key: "seat:123", goodKey: "seat:12:3", truth: `SELECT who FROM seats WHERE row = 12`, bad: stale, good: kept},
			},
		},
		{
			name: "a generated column in a key", code: "L032", says: "is generated", subject: "names",
			schema: []string{`CREATE TABLE names (id int PRIMARY KEY, name text NOT NULL, search text GENERATED ALWAYS AS (lower(name)) STORED)`,
				`INSERT INTO names (id, name) VALUES (1, 'Ann'), (2, 'Bob')`},
			bad: blocks{entries: `named: {key: "named:{search}"}`,
				rules: `- {name: names, table: public.names, on: insert, keys: ["named:{search}"]}`},
			good: blocks{entries: `named: {key: "named:{search}"}`,
				rules: `- {name: names, table: public.names, on: insert, keys: ["named:{name|lower}"]}`},
			change: `INSERT INTO names (id, name) VALUES (3, 'Ann')`,
			again:  `INSERT INTO names (id, name) VALUES (4, 'Ann')`,
			entries: []cached{
				{class: "named", key: "named:ann", truth: `SELECT count(*)::text FROM names WHERE search = 'ann'`, bad: forgotten, good: forgotten},
				{class: "named", key: "named:bob", truth: `SELECT count(*)::text FROM names WHERE search = 'bob'`, bad: lost, good: kept},
			},
		},
		{
			name: "a side that the operation does not have", code: "L033", says: "an insert has no old row", subject: "logs",
			schema: []string{`CREATE TABLE logs (id int PRIMARY KEY, job int)`, `INSERT INTO logs VALUES (1, 1)`},
			bad: blocks{entries: `job: {key: "job:{job}"}`,
				rules: `- {name: logs, table: public.logs, on: insert, keys: ["job:{old.job}"]}`},
			good: blocks{entries: `job: {key: "job:{job}"}`,
				rules: `- {name: logs, table: public.logs, on: insert, keys: ["job:{job}"]}`},
			change:  `INSERT INTO logs VALUES (2, 1)`,
			again:   `INSERT INTO logs VALUES (3, 1)`,
			entries: []cached{{class: "job", key: "job:1", truth: `SELECT count(*)::text FROM logs WHERE job = 1`, bad: stale, good: forgotten}},
		},
		{
			name: "a key that two tenants share", code: "L042", says: `lacks "tenant_id"`, subject: "orders",
			schema: []string{`CREATE TABLE orders (tenant_id int, id int, total int, PRIMARY KEY (tenant_id, id))`, `INSERT INTO orders VALUES (1, 1, 10), (2, 1, 20)`},
			bad: blocks{entries: `order: {key: "order:{id}"}`,
				rules: `- {name: orders, table: public.orders, keys: ["order:{id}"]}`},
			good: blocks{entries: `order: {key: "order:{tenant_id}:{id}"}`,
				rules: `- {name: orders, table: public.orders, keys: ["order:{tenant_id}:{id}"]}`},
			entries: []cached{
				{class: "order", key: "order:1", goodKey: "order:1:1", truth: `SELECT total::text FROM orders WHERE tenant_id = 1`, bad: kept, good: kept},
				{class: "order", key: "order:1", goodKey: "order:2:1", truth: `SELECT total::text FROM orders WHERE tenant_id = 2`, bad: stale, good: kept},
			},
		},
		{
			name: "values that live long, and no rule", code: "L045", subject: "weather",
			schema: []string{`CREATE TABLE weather (id int PRIMARY KEY, degrees int)`, `INSERT INTO weather VALUES (1, 10)`},
			bad:    blocks{entries: `weather: {key: "weather:{id}", ttl: never}`},
			good: blocks{entries: `weather: {key: "weather:{id}", ttl: never}`,
				rules: `- {name: weather, table: public.weather, keys: ["weather:{id}"]}`},
			change:  `UPDATE weather SET degrees = degrees + 1`,
			again:   `UPDATE weather SET degrees = degrees + 1`,
			entries: []cached{{class: "weather", key: "weather:1", truth: `SELECT degrees::text FROM weather WHERE id = 1`, bad: stale, good: forgotten}},
		},
	}
}
