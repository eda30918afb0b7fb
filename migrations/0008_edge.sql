-- What is still to be told to edge caches (docs/edge.md): a row for each endpoint
-- and some tens of milliseconds of invalidations. Rows are written once, move
-- their due_at, and are deleted; what waits is bounded by `pending`, beyond which
-- one row says that everything is forgotten.
CREATE TABLE lethe.edge_outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The deployment: its namespace and the log that it follows.
    owner      text NOT NULL,
    endpoint   text NOT NULL,
    -- When somebody may take it: at once, after the lease of one who took it and
    -- died, or when it is to be told again.
    due_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often it was told.
    told       int NOT NULL DEFAULT 0,
    everything bool NOT NULL DEFAULT false,
    -- Names as bytes: what applications put into them is not always UTF-8.
    keys       bytea[] NOT NULL DEFAULT '{}',
    tags       bytea[] NOT NULL DEFAULT '{}',
    classes    text[] NOT NULL DEFAULT '{}',
    names      int NOT NULL DEFAULT 0,
    position   text NOT NULL DEFAULT '',
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX edge_outbox_due ON lethe.edge_outbox (owner, endpoint, due_at);
COMMENT ON TABLE lethe.edge_outbox IS 'Lethe: what edge caches are still to be told';

-- The endpoints that were told from some time on, and what of. One that is new,
-- or is told more than before, is told to forget everything first.
CREATE TABLE lethe.edge_endpoints (
    owner    text NOT NULL,
    endpoint text NOT NULL,
    scope    text NOT NULL,
    since    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, endpoint)
);
COMMENT ON TABLE lethe.edge_endpoints IS 'Lethe: edge caches that are told what was forgotten';
