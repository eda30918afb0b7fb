-- Changes that could not be processed, in direct mode (kafka: the topic *.dlq).
CREATE TABLE lethe.dead_letters (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    reason     text NOT NULL,
    error      text NOT NULL,
    part       int NOT NULL,
    log_offset bigint NOT NULL,
    position   text NOT NULL DEFAULT '',
    table_name text NOT NULL DEFAULT '',
    payload    bytea
);
COMMENT ON TABLE lethe.dead_letters IS 'Lethe: changes that could not be processed';
