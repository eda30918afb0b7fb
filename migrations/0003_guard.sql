-- The guard: event triggers that keep the application's own statements working
-- when it changes a published table. Without it a publication can make them
-- fail (all of these were seen on Postgres 15):
--
--   an UPDATE, after the replica identity was dropped, or became one that the
--     column list does not cover (USING INDEX, FULL, another primary key);
--   ALTER TABLE ... DROP COLUMN of a listed column ("other objects depend on it");
--   ALTER COLUMN ... TYPE of a listed column ("used by a publication WHERE clause").
--
-- Everything here runs in the transaction of the DDL, and nothing here can make
-- it fail: each step is a subtransaction whose errors end in the server's log.
-- It waits for locks less than deadlock_timeout (1 s) and no longer than the
-- session itself would, so that no deadlock is ever resolved at the
-- application's cost. What remains: from Postgres 15 on ALTER PUBLICATION locks the
-- publication until its transaction ends, so of two transactions that alter
-- published tables at one time the guard gives the second up; its DDL, or the
-- updates behind it, may then fail until the first has ended.

-- What runs here runs with the rights of whoever installs it, so nobody else may
-- put another function in its place; and lethe.source() then sees what its first
-- owner, perhaps an ordinary role, could not.
ALTER SCHEMA lethe OWNER TO CURRENT_USER;
ALTER FUNCTION lethe.source() OWNER TO CURRENT_USER;

-- The publications that are Lethe's. Filled by guard_publication() alone: the
-- guard acts with its owner's rights and must not be led to the publications of
-- somebody else.
CREATE TABLE lethe.publications (name name PRIMARY KEY);
GRANT SELECT ON lethe.publications TO PUBLIC;
COMMENT ON TABLE lethe.publications IS 'Lethe: publications that the guard looks after';

CREATE FUNCTION lethe.guard_publication(publication name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM pg_publication p
        WHERE p.pubname = publication AND pg_has_role(session_user, p.pubowner, 'USAGE');
    IF NOT FOUND THEN
        RAISE insufficient_privilege USING MESSAGE = format('publication %I is not yours', publication);
    END IF;
    INSERT INTO lethe.publications VALUES (publication) ON CONFLICT DO NOTHING;
END $$;

-- What is published, and what of it is amiss. One row for each table of a
-- publication of ours, main or inserts.
--   columns  the column list, NULL for whole rows
--   broken   the main publication sends updates, and some row of the table has
--            no replica identity: the application's UPDATE fails
--   bare     the column list does not cover a replica identity: the same
CREATE FUNCTION lethe.guard_tables(
    OUT publication name, OUT main name, OUT relid oid, OUT schema_name name, OUT table_name name,
    OUT columns int2[], OUT broken bool, OUT bare bool)
RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.pubname, t.main, t.oid, t.nspname, t.relname, t.columns,
           t.updates AND EXISTS (SELECT FROM unnest(t.members) AS x WHERE (x ->> 'usable') = 'false'),
           t.updates AND t.columns IS NOT NULL AND EXISTS (
               SELECT FROM unnest(t.members) AS x
               WHERE x ->> 'identity' = 'f' OR EXISTS (
                   SELECT FROM jsonb_array_elements_text(x -> 'names') AS k(name)
                   WHERE k.name NOT IN (SELECT a.attname FROM pg_attribute a
                                        WHERE a.attrelid = t.oid AND a.attnum = ANY (t.columns))))
    FROM (
        SELECT p.pubname, g.name AS main, c.oid, n.nspname, c.relname, p.pubupdate OR p.pubdelete AS updates,
               -- by way of json: version 14 has no such column
               (SELECT array_agg(a.value::int2) FROM regexp_split_to_table(nullif(regexp_replace(
                   to_jsonb(r) ->> 'prattrs', '[^0-9]+', ' ', 'g'), ''), ' ') AS a(value) WHERE a.value <> '') AS columns,
               -- A row belongs to the table itself or to a partition, and each
               -- has a replica identity of its own. Postgres asks nothing of
               -- foreign, unlogged and temporary ones.
               ARRAY(SELECT jsonb_build_object(
                         'identity', m.relreplident,
                         'usable', m.relreplident = 'f' OR i.indexrelid IS NOT NULL,
                         'names', (SELECT coalesce(jsonb_agg(a.attname), '[]') FROM pg_attribute a
                                   WHERE a.attrelid = m.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])))
                     FROM pg_class m
                     LEFT JOIN pg_index i ON i.indrelid = m.oid AND i.indisvalid AND i.indisunique
                         AND i.indimmediate AND i.indpred IS NULL
                         AND CASE m.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
                     WHERE m.relkind = 'r' AND m.relpersistence = 'p'
                       AND (m.oid = c.oid OR c.relkind = 'p' AND m.oid IN (
                            SELECT l.relid FROM pg_partition_tree(c.oid) AS l WHERE l.isleaf))) AS members
        FROM lethe.publications g
        JOIN pg_publication o ON o.pubname = g.name
        -- the owner must be the same: see above
        JOIN pg_publication p ON p.pubname IN (g.name, (g.name || '_inserts')::name) AND p.pubowner = o.pubowner
        JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_class c ON c.oid = r.prrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace) AS t
$$;

-- guard_wait makes locks wait as said above, and returns what to set back.
CREATE FUNCTION lethe.guard_wait() RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own text := current_setting('lock_timeout');
    ms int := extract(epoch FROM own::interval) * 1000;
BEGIN
    -- is_local: the end of the transaction undoes it in any case
    IF ms = 0 OR ms > 800 THEN
        PERFORM set_config('lock_timeout', '800ms', true);
    END IF;
    RETURN own;
END $$;

-- Before ALTER TABLE: take away column lists that it would fail on. Which
-- table and column it means is not known yet, so any statement of the stack
-- that drops something or says "type", and names a table with a column list or
-- an ancestor of it, counts; where a statement cannot be seen, every table does.
-- Too much is published then, until the next check narrows it again.
CREATE FUNCTION lethe.guard_before() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    said text;
    wait text;
    blind bool;
    t record;
BEGIN
    BEGIN
        -- A partition that is about to be dropped: afterwards nobody knows
        -- whose it was. Read by guard_dropped().
        IF tg_tag <> 'ALTER TABLE' THEN
            PERFORM set_config('lethe.leaves', coalesce((
                SELECT string_agg(l.relid::oid || '=' || g.relid, ' ')
                FROM lethe.guard_tables() g, pg_partition_tree(g.relid) AS l
                WHERE l.relid <> g.relid), ''), true);
            RETURN;
        END IF;
        GET DIAGNOSTICS said = PG_CONTEXT;
        blind := current_query() IS NULL OR said ~ 'SQL function "' OR current_query() ~* 'u&"' OR said ~* 'u&"';
        said := lower(coalesce(current_query(), '') || said);
        IF NOT blind AND said !~ '\m(drop|type)\M' THEN
            RETURN;
        END IF;
        FOR t IN
            SELECT g.publication, g.schema_name, g.table_name FROM lethe.guard_tables() g
            WHERE g.columns IS NOT NULL AND (blind OR EXISTS (
                WITH RECURSIVE up(oid) AS (
                    SELECT g.relid
                    UNION SELECT i.inhparent FROM pg_inherits i JOIN up ON i.inhrelid = up.oid)
                SELECT FROM up JOIN pg_class c ON c.oid = up.oid
                WHERE strpos(said, lower(replace(c.relname, '"', '""'))) > 0))
        LOOP
            BEGIN
                wait := lethe.guard_wait();
                EXECUTE format('ALTER PUBLICATION %I DROP TABLE ONLY %I.%I', t.publication, t.schema_name, t.table_name);
                EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I', t.publication, t.schema_name, t.table_name);
                PERFORM set_config('lock_timeout', wait, true);
            EXCEPTION WHEN OTHERS THEN
                RAISE LOG 'lethe guard: widen %.% in publication %: %', t.schema_name, t.table_name, t.publication, SQLERRM;
            END;
        END LOOP;
    EXCEPTION WHEN OTHERS THEN
        RAISE LOG 'lethe guard: before %: %', tg_tag, SQLERRM;
    END;
END $$;

-- After any DDL that may have changed a replica identity. It looks at every
-- table of ours instead of at what the command says it did: a few catalog rows,
-- and no way for an identity to be lost that we did not think of.
CREATE FUNCTION lethe.guard_after() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wait text;
    t record;
    tables jsonb;
BEGIN
    BEGIN
        -- A new table matters only as a partition; temporary ones are frequent.
        IF tg_tag = 'CREATE TABLE' AND NOT EXISTS (
            SELECT FROM pg_event_trigger_ddl_commands() AS d JOIN pg_class c ON c.oid = d.objid
            WHERE d.classid = 'pg_class'::regclass AND c.relispartition)
        THEN
            RETURN;
        END IF;
        FOR t IN SELECT * FROM lethe.guard_tables() g WHERE g.broken OR g.bare LOOP
            BEGIN
                wait := lethe.guard_wait();
                EXECUTE format('ALTER PUBLICATION %I DROP TABLE ONLY %I.%I', t.publication, t.schema_name, t.table_name);
                IF NOT t.broken THEN
                    EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I', t.publication, t.schema_name, t.table_name);
                ELSIF EXISTS (SELECT FROM pg_publication p JOIN pg_publication o USING (pubowner)
                              WHERE p.pubname = (t.main || '_inserts')::name AND o.pubname = t.main
                                AND NOT p.pubupdate AND NOT p.pubdelete
                                AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = t.relid))
                THEN
                    EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I', t.main || '_inserts', t.schema_name, t.table_name);
                END IF;
                PERFORM set_config('lock_timeout', wait, true);
            EXCEPTION WHEN OTHERS THEN
                RAISE LOG 'lethe guard: mend %.% in publication %: %', t.schema_name, t.table_name, t.publication, SQLERRM;
            END;
        END LOOP;
        -- A rewrite, a column that comes or goes, a partition that is attached
        -- or detached: rows change, and the log says nothing of it.
        SELECT jsonb_agg(DISTINCT g.schema_name || '.' || g.table_name) INTO tables
        FROM pg_event_trigger_ddl_commands() AS d, lethe.guard_tables() AS g
        WHERE d.classid = 'pg_class'::regclass AND d.command_tag = 'ALTER TABLE'
          AND (d.objid = g.relid
               OR EXISTS (SELECT FROM pg_partition_ancestors(d.objid) AS a WHERE a.relid = g.relid)
               OR EXISTS (SELECT FROM pg_partition_ancestors(g.relid) AS a WHERE a.relid = d.objid));
        IF tables IS NOT NULL THEN
            PERFORM pg_logical_emit_message(true, 'lethe.ddl', jsonb_build_object('tables', tables)::text);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE LOG 'lethe guard: after %: %', tg_tag, SQLERRM;
    END;
END $$;

-- After a drop: a table that left a publication because one of its columns went
-- with something else (DROP TYPE ... CASCADE) comes back with whole rows, and
-- what was dropped with its rows is told.
CREATE FUNCTION lethe.guard_dropped() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wait text;
    t record;
    tables jsonb;
BEGIN
    BEGIN
        FOR t IN
            SELECT d.address_args[1] AS publication, n.nspname, c.relname
            FROM pg_event_trigger_dropped_objects() AS d
            JOIN pg_namespace n ON n.nspname = d.address_names[1]
            JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = d.address_names[2]
            JOIN lethe.publications g ON d.address_args[1] IN (g.name, g.name || '_inserts')
            JOIN pg_publication o ON o.pubname = g.name
            JOIN pg_publication p ON p.pubname = d.address_args[1] AND p.pubowner = o.pubowner
            WHERE d.object_type = 'publication relation'
        LOOP
            BEGIN
                wait := lethe.guard_wait();
                EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %I.%I', t.publication, t.nspname, t.relname);
                PERFORM set_config('lock_timeout', wait, true);
            EXCEPTION WHEN OTHERS THEN
                RAISE LOG 'lethe guard: return %.% to publication %: %', t.nspname, t.relname, t.publication, SQLERRM;
            END;
        END LOOP;
        SELECT jsonb_agg(DISTINCT x.name) INTO tables FROM (
            -- the table itself
            SELECT d.address_names[1] || '.' || d.address_names[2] AS name
            FROM pg_event_trigger_dropped_objects() AS d
            JOIN lethe.publications g ON d.address_args[1] IN (g.name, g.name || '_inserts')
            WHERE d.object_type = 'publication relation'
            UNION ALL
            -- a partition of it
            SELECT n.nspname || '.' || c.relname
            FROM pg_event_trigger_dropped_objects() AS d,
                 regexp_split_to_table(coalesce(current_setting('lethe.leaves', true), ''), ' ') AS l(pair),
                 pg_class c, pg_namespace n
            WHERE l.pair <> '' AND d.classid = 'pg_class'::regclass AND d.objsubid = 0
              AND d.objid = split_part(l.pair, '=', 1)::oid
              AND c.oid = split_part(l.pair, '=', 2)::oid AND n.oid = c.relnamespace) AS x;
        IF tables IS NOT NULL THEN
            PERFORM pg_logical_emit_message(true, 'lethe.ddl', jsonb_build_object('tables', tables)::text);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE LOG 'lethe guard: dropped by %: %', tg_tag, SQLERRM;
    END;
END $$;

-- Event triggers are the database's, not a schema's: the prefix marks them.
CREATE EVENT TRIGGER lethe_guard_before ON ddl_command_start
    WHEN TAG IN ('ALTER TABLE', 'DROP TABLE', 'DROP SCHEMA', 'DROP OWNED')
    EXECUTE FUNCTION lethe.guard_before();
CREATE EVENT TRIGGER lethe_guard_after ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'ALTER INDEX', 'ALTER TYPE', 'CREATE SCHEMA', 'CREATE TABLE', 'DROP DOMAIN', 'DROP EXTENSION',
                 'DROP INDEX', 'DROP OPERATOR CLASS', 'DROP OPERATOR FAMILY', 'DROP OWNED', 'DROP SCHEMA', 'DROP TABLE', 'DROP TYPE')
    EXECUTE FUNCTION lethe.guard_after();
CREATE EVENT TRIGGER lethe_guard_dropped ON sql_drop
    WHEN TAG IN ('ALTER TABLE', 'ALTER TYPE', 'DROP DOMAIN', 'DROP EXTENSION', 'DROP OWNED', 'DROP SCHEMA', 'DROP TABLE', 'DROP TYPE')
    EXECUTE FUNCTION lethe.guard_dropped();
-- Also in sessions with session_replication_role = replica.
ALTER EVENT TRIGGER lethe_guard_before ENABLE ALWAYS;
ALTER EVENT TRIGGER lethe_guard_after ENABLE ALWAYS;
ALTER EVENT TRIGGER lethe_guard_dropped ENABLE ALWAYS;
