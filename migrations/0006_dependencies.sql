-- Dependencies that administrators declare, beside those of rules.yaml: whatever
-- forgets a name of the form of "of" forgets those of "also" with it.
--
-- Workers read the table at their start and after every statement that changes
-- it, which they are told of through the log: the trigger below writes a logical
-- message into the transaction of the change, so that it stands in the log where
-- the change does, whoever makes it and however. The table is in no publication:
-- its rows need not travel, only the news that they are others.
CREATE TABLE lethe.dependencies (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Of the rules; names are without it.
    namespace   text NOT NULL CHECK (namespace ~ '^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})?$'),
    -- Templates of keys and tags: user:{id}, or one name.
    of          text NOT NULL CHECK (of <> '' AND octet_length(of) <= 1024 AND of !~ '[[:cntrl:]]'),
    also        text[] NOT NULL CHECK (
        coalesce(array_ndims(also), 0) = 1 AND cardinality(also) <= 100 AND array_position(also, NULL) IS NULL
        AND NOT '' = ANY (also) AND octet_length(array_to_string(also, '')) <= 102400
        AND array_to_string(also, '') !~ '[[:cntrl:]]'),
    -- CEL, as in rules.yaml; NULL: always.
    condition   text CHECK (condition <> '' AND octet_length(condition) <= 16384),
    owner       text,
    description text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  name NOT NULL DEFAULT current_user
);
COMMENT ON TABLE lethe.dependencies IS 'Lethe: dependencies that administrators declare';

CREATE FUNCTION lethe.dependencies_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_logical_emit_message(true, 'lethe.dependencies', '{}');
    RETURN NULL;
END $$;

CREATE TRIGGER dependencies_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON lethe.dependencies
    FOR EACH STATEMENT EXECUTE FUNCTION lethe.dependencies_changed();
-- A restore with session_replication_role = replica changes the table too.
ALTER TABLE lethe.dependencies ENABLE ALWAYS TRIGGER dependencies_changed;
