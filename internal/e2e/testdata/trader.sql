-- A trading company, after the well-known sample of the same shape: customers,
-- employees who report to each other, orders and their lines, products of
-- categories and suppliers. Added to it: a partitioned table, a second schema,
-- names that need quotes, a table without key and one that is not logged.
CREATE TABLE regions (region_id smallint PRIMARY KEY, description text NOT NULL);
CREATE TABLE territories (
    territory_id varchar(20) PRIMARY KEY, description text NOT NULL,
    region_id smallint NOT NULL REFERENCES regions ON UPDATE CASCADE);
CREATE TABLE employees (
    employee_id int PRIMARY KEY, last_name varchar(20) NOT NULL, first_name varchar(10) NOT NULL, title text,
    born date, hired timestamptz, photo bytea, password_hash text,
    reports_to int REFERENCES employees ON DELETE SET NULL ON UPDATE CASCADE);
CREATE TABLE employee_territories (
    employee_id int REFERENCES employees ON DELETE CASCADE ON UPDATE CASCADE,
    territory_id varchar(20) REFERENCES territories ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (employee_id, territory_id));
CREATE TABLE customers (
    customer_id char(5) PRIMARY KEY, company varchar(40) NOT NULL, contact text, country varchar(15), api_key text);
CREATE TABLE customer_types (type_id varchar(10) PRIMARY KEY, description text);
CREATE TABLE customer_customer_types (
    customer_id char(5) REFERENCES customers ON DELETE CASCADE ON UPDATE CASCADE,
    type_id varchar(10) REFERENCES customer_types ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (type_id, customer_id));
CREATE TABLE categories (category_id smallint PRIMARY KEY, name varchar(15) NOT NULL, picture bytea);
CREATE TABLE suppliers (supplier_id uuid PRIMARY KEY, company varchar(40) NOT NULL, country varchar(15));
CREATE TABLE products (
    product_id int PRIMARY KEY, name varchar(40) NOT NULL, price numeric(10,2), discontinued bool NOT NULL DEFAULT false,
    details jsonb, words tsvector,
    category_id smallint REFERENCES categories ON DELETE SET NULL ON UPDATE CASCADE,
    supplier_id uuid REFERENCES suppliers ON DELETE SET NULL);
CREATE TABLE shippers (shipper_id smallint PRIMARY KEY, company text NOT NULL, phone text);
CREATE TABLE orders (
    order_id bigint PRIMARY KEY,
    customer_id char(5) NOT NULL REFERENCES customers ON DELETE CASCADE ON UPDATE CASCADE,
    employee_id int NOT NULL REFERENCES employees ON DELETE CASCADE ON UPDATE CASCADE,
    shipper_id smallint REFERENCES shippers ON DELETE SET NULL,
    ordered date NOT NULL, freight real);
CREATE TABLE order_lines (
    order_id bigint REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE,
    product_id int REFERENCES products ON DELETE CASCADE ON UPDATE CASCADE,
    quantity smallint NOT NULL, discount double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (order_id, product_id));
-- A line can come back in several parcels: a foreign key of two columns, and a
-- timestamp in the key.
CREATE TABLE returns (
    order_id bigint, product_id int, received timestamptz, reason text,
    PRIMARY KEY (order_id, product_id, received),
    FOREIGN KEY (order_id, product_id) REFERENCES order_lines ON DELETE CASCADE ON UPDATE CASCADE);
-- One row for each order: the foreign key is the primary key.
CREATE TABLE invoices (order_id bigint PRIMARY KEY REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE, total numeric, paid bool);
CREATE TABLE shipments (
    shipment_id bigint, shipped_on date, order_id bigint REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE, note text,
    PRIMARY KEY (shipment_id, shipped_on)) PARTITION BY RANGE (shipped_on);
CREATE TABLE shipments_2025 PARTITION OF shipments FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE shipments_2026 PARTITION OF shipments FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TYPE season AS ENUM ('spring', 'summer', 'autumn', 'winter');
CREATE SCHEMA sales;
CREATE TABLE sales.quotas (
    employee_id int REFERENCES employees ON DELETE CASCADE ON UPDATE CASCADE, season season, amount numeric,
    PRIMARY KEY (employee_id, season));
CREATE TABLE sales."Price List" (
    "List No" int, "Key" text, price numeric, "order" int, product_id int NOT NULL REFERENCES products ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY ("List No", "Key"));
CREATE TABLE audit_trail (at timestamptz NOT NULL, what text, employee_id int REFERENCES employees ON DELETE SET NULL);
CREATE TABLE audit_notes (note_id int PRIMARY KEY, note text);
CREATE UNLOGGED TABLE carts (cart_id int PRIMARY KEY, customer_id char(5));
CREATE VIEW customers_of_note AS SELECT customer_id FROM customers;

INSERT INTO regions SELECT i, 'region ' || i FROM generate_series(1, 4) i;
INSERT INTO territories SELECT 't:' || i, 'territory ' || i, 1 + i % 4 FROM generate_series(1, 12) i;
INSERT INTO employees SELECT i, 'last ' || i, 'first ' || i, 'title', '1970-01-01'::date + i, now(), '\x00', 'x', nullif(i / 3, 0)
    FROM generate_series(1, 12) i;
INSERT INTO employee_territories SELECT 1 + i % 12, 't:' || 1 + i % 11 FROM generate_series(1, 40) i ON CONFLICT DO NOTHING;
INSERT INTO customers SELECT 'C' || i, 'company ' || i, 'contact', 'here', 'x' FROM generate_series(1, 20) i;
INSERT INTO customer_types SELECT 'k:' || i, 'type ' || i FROM generate_series(1, 4) i;
INSERT INTO customer_customer_types SELECT 'C' || 1 + i % 20, 'k:' || 1 + i % 4 FROM generate_series(1, 30) i ON CONFLICT DO NOTHING;
INSERT INTO categories SELECT i, 'category ' || i, '\x00' FROM generate_series(1, 6) i;
INSERT INTO suppliers SELECT ('00000000-0000-0000-0000-0000000000' || to_char(i, 'FM00'))::uuid, 'supplier ' || i, 'there' FROM generate_series(1, 8) i;
INSERT INTO products SELECT i, 'product ' || i, i * 1.5, false, '{"size": 1}', NULL, 1 + i % 6,
    ('00000000-0000-0000-0000-0000000000' || to_char(1 + i % 8, 'FM00'))::uuid FROM generate_series(1, 40) i;
INSERT INTO shippers SELECT i, 'shipper ' || i, '1' FROM generate_series(1, 3) i;
INSERT INTO orders SELECT i, 'C' || 1 + i % 20, 1 + i % 12, 1 + i % 3, '2025-06-01'::date + i, i / 3.0 FROM generate_series(1, 60) i;
INSERT INTO order_lines SELECT 1 + i % 60, 1 + i % 37, 1, 0.5 FROM generate_series(1, 200) i ON CONFLICT DO NOTHING;
INSERT INTO returns SELECT order_id, product_id, '2026-01-01 00:00:00.5+00', 'broken' FROM order_lines WHERE product_id % 5 = 0;
INSERT INTO invoices SELECT order_id, 10, false FROM orders;
INSERT INTO shipments SELECT i, '2025-09-01'::date + 4 * i, i, 'note' FROM generate_series(1, 60) i;
INSERT INTO sales.quotas SELECT i, s, 100 FROM generate_series(1, 12) i, unnest(enum_range(NULL::season)) s;
INSERT INTO sales."Price List" SELECT 1 + i % 3, 'key:' || i, i, i, 1 + i % 40 FROM generate_series(1, 30) i;
INSERT INTO audit_trail SELECT now(), 'hired', i FROM generate_series(1, 12) i;
INSERT INTO audit_notes SELECT i, 'note' FROM generate_series(1, 3) i;
ANALYZE;
