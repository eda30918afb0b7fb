-- Gaps in what was published: a table that entered a publication, of which more
-- is published than before, or that a DDL changed without a row in the log. The
-- row is written in the transaction that makes the gap, so that the raises that
-- heal it are due until every reader of the publication has them in its log,
-- whoever dies in between. A few rows, each written over by the next gap.
CREATE TABLE lethe.gaps (
    publication text NOT NULL,
    table_name  text NOT NULL,
    -- Grows with each gap, so that a reader that has told an earlier one knows.
    id          bigint GENERATED ALWAYS AS IDENTITY,
    -- Raise again when the transactions of the time are over.
    twice       bool NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (publication, table_name)
);
COMMENT ON TABLE lethe.gaps IS 'Lethe: tables whose changes were not published for a time';

-- Which of them the reader of each slot has raised.
CREATE TABLE lethe.gaps_told (
    slot        text NOT NULL,
    publication text NOT NULL,
    table_name  text NOT NULL,
    id          bigint NOT NULL,
    PRIMARY KEY (slot, publication, table_name)
);
COMMENT ON TABLE lethe.gaps_told IS 'Lethe: gaps that the reader of each slot has raised';

-- What each table looked like when it was last checked: a DDL that came while
-- no Lethe ran is noticed at the next start.
CREATE TABLE lethe.fingerprints (
    publication text NOT NULL,
    table_name  text NOT NULL,
    fingerprint text NOT NULL,
    PRIMARY KEY (publication, table_name)
);
COMMENT ON TABLE lethe.fingerprints IS 'Lethe: files and columns of published tables, as last seen';
