-- Who the server is. See docs: PROTOCOL facts 8 and 9.
--
-- The function answers for roles that may not look themselves: an ordinary role
-- reads NULL from pg_stat_wal_receiver.received_tli and from the backend_start
-- of the checkpointer. It is replicated, so a standby has it too.
CREATE FUNCTION lethe.source(
    OUT in_recovery bool,
    OUT system_id bigint,
    OUT timeline int,
    OUT postmaster_start timestamptz,
    OUT checkpointer_start timestamptz,
    OUT insert_lsn pg_lsn,
    OUT replay_lsn pg_lsn)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Read first: a standby that is promoted while we run then answers as the
    -- standby it was, with an older position, which is the safe direction.
    in_recovery := pg_is_in_recovery();
    IF in_recovery THEN
        replay_lsn := pg_last_wal_replay_lsn();
        -- pg_control_checkpoint() lags behind a switch of timeline. Without a
        -- WAL receiver the timeline is unknown: NULL, and nothing is cached.
        SELECT r.received_tli INTO timeline FROM pg_stat_wal_receiver r;
    ELSE
        insert_lsn := pg_current_wal_insert_lsn();
        timeline := ('x' || substr(pg_walfile_name(insert_lsn), 1, 8))::bit(32)::int;
    END IF;
    SELECT c.system_identifier INTO system_id FROM pg_control_system() c;
    postmaster_start := pg_postmaster_start_time();
    -- A backend that is killed restarts every auxiliary process, not the
    -- postmaster: only this tells that commits may have been lost.
    SELECT a.backend_start INTO checkpointer_start
        FROM pg_stat_activity a WHERE a.backend_type = 'checkpointer';
END $$;
COMMENT ON FUNCTION lethe.source() IS 'Lethe: identity and position of the server that answers';
-- Whoever reads through the cache calls it; it tells nothing secret.
GRANT EXECUTE ON FUNCTION lethe.source() TO PUBLIC;

-- What the reader of each slot knew last. One row, rewritten in place.
CREATE TABLE lethe.source (
    slot               text PRIMARY KEY,
    era                int NOT NULL CHECK (era BETWEEN 1 AND 65535),
    system_id          bigint NOT NULL,
    timeline           int NOT NULL,
    postmaster_start   timestamptz NOT NULL,
    -- NULL, or taken from a statistic, where the role may not see the checkpointer.
    checkpointer_start timestamptz,
    -- Every confirmation of the slot is written here before it is sent.
    confirmed          pg_lsn,
    -- The raise that began the era is not known to be durable yet.
    raise_due          bool NOT NULL DEFAULT true,
    updated_at         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
COMMENT ON TABLE lethe.source IS 'Lethe: era, instance and confirmed position of each slot';
