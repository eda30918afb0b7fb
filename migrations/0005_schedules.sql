-- Invalidations that are due at a time: of rules with `at:`, of logical messages
-- and of `lethe invalidate --at`.
--
-- The order of the changes of a row is that of position, not that of their
-- arrival: what is delivered twice, late or in another order changes nothing. So
-- the row stays when its schedule is fired or taken back, with no time in it,
-- for as long as an older change of the same row may still be delivered.
CREATE TABLE lethe.schedules (
    -- Whose it is to fire: every deployment of a namespace hears what any of
    -- them emits. What a deployment that is gone has left is fired by the others.
    namespace  text NOT NULL,
    -- Whose it is to replace: the deployment, its namespace and the log that it
    -- follows, since positions of two logs do not compare. Messages belong to all.
    owner      text NOT NULL,
    -- Identity of the rule: everything in it but its name. 0: a message.
    rule_id    bigint NOT NULL,
    -- The row: the values of its replica identity. Of a message, its position.
    row_key    text NOT NULL,
    -- X of the change, and its number in the transaction: fixed-width hexadecimal.
    position   text COLLATE "C" NOT NULL,
    -- NULL: nothing is due.
    due_at     timestamptz,
    -- The logical message that is emitted then, names as they were rendered.
    message    text,
    -- For people: the rule's name at the time.
    rule       text NOT NULL DEFAULT '',
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, rule_id, row_key),
    CHECK ((due_at IS NULL) = (message IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX schedules_due ON lethe.schedules (namespace, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX schedules_done ON lethe.schedules (namespace, updated_at) WHERE due_at IS NULL;
COMMENT ON TABLE lethe.schedules IS 'Lethe: invalidations that are due at a time';

-- For which rules the rows that were there before have been read. A scan is due
-- while wanted is above done: of a rule that is new, and after every gap in what
-- the log told of the rule's table.
CREATE TABLE lethe.schedule_scans (
    owner      text NOT NULL,
    rule_id    bigint NOT NULL,
    rule       text NOT NULL DEFAULT '',
    wanted     bigint NOT NULL DEFAULT 1,
    done       bigint NOT NULL DEFAULT 0,
    -- What was due before this the raise that came with it has forgotten.
    wanted_from timestamptz NOT NULL,
    -- Until when the process that scans has it for itself. Two scans at a time
    -- do no harm.
    leased     timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, rule_id)
);
COMMENT ON TABLE lethe.schedule_scans IS 'Lethe: rules with at: whose tables are to be read for schedules';
