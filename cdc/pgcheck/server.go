package pgcheck

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/migrations"
)

const (
	versionLeast    = 140000
	versionFailover = 170000
	// senderTimeoutLeast leaves room for a status every third of it.
	senderTimeoutLeastMS = 5000
)

// server is what decides most checks, read at once.
type server struct {
	version                 int
	inRecovery              bool
	walLevel_               string
	maxSlots, slots         int
	maxSenders, senders     int
	keepSizeMB              int
	senderTimeoutMS         int
	syncNames               string
	syncConnected           int
	syncKnown               bool
	standbySlots            string
	idleSlotTimeout         string
	user, database          string
	superuser, mayReplicate bool
	mayCreate               bool
	slot                    *slot
	sourceWritable          bool
	guardInstalled          bool
}

type slot struct {
	plugin, database, status string
	temporary, active        bool
	failover                 bool
	retainedMB               int64
}

func readServer(ctx context.Context, conn *pgx.Conn, cfg Config) (*server, error) {
	s := new(server)
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
		current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
		current_setting('max_wal_senders')::int, (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'),
		(SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
		(SELECT setting::int FROM pg_settings WHERE name = 'wal_sender_timeout'),
		current_setting('synchronous_standby_names'),
		(SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
		pg_has_role('pg_read_all_stats', 'USAGE'),
		coalesce(current_setting('synchronized_standby_slots', true), ''), coalesce(current_setting('idle_replication_slot_timeout', true), '0'),
		current_user, current_database(), r.rolsuper,
		r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'azure_pg_admin', 'cloudsqlsuperuser') AND pg_has_role(m.oid, 'MEMBER')),
		has_database_privilege(current_database(), 'CREATE')
		FROM pg_roles r WHERE r.rolname = current_user`).Scan(&s.version, &s.inRecovery, &s.walLevel_,
		&s.maxSlots, &s.slots, &s.maxSenders, &s.senders, &s.keepSizeMB, &s.senderTimeoutMS, &s.syncNames, &s.syncConnected, &s.syncKnown,
		&s.standbySlots, &s.idleSlotTimeout, &s.user, &s.database, &s.superuser, &s.mayReplicate, &s.mayCreate)
	if err != nil {
		return nil, err
	}
	if s.version < versionLeast {
		return s, nil
	}
	var l slot
	err = conn.QueryRow(ctx, `SELECT coalesce(s.plugin, ''), coalesce(s.database, ''), coalesce(s.wal_status, ''), s.temporary, s.active,
		coalesce(to_jsonb(s) ->> 'failover' = 'true', false),
		CASE WHEN pg_is_in_recovery() THEN 0 ELSE coalesce(pg_current_wal_lsn() - s.restart_lsn, 0) / 1048576 END::bigint
		FROM pg_replication_slots s WHERE s.slot_name = $1`, cfg.Slot).
		Scan(&l.plugin, &l.database, &l.status, &l.temporary, &l.active, &l.failover, &l.retainedMB)
	switch {
	case err == nil:
		s.slot = &l
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, err
	}
	err = conn.QueryRow(ctx, `SELECT coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
		AND has_table_privilege(c.oid, 'UPDATE'), false)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'lethe' AND c.relname = 'source'`).Scan(&s.sourceWritable)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	return s, nil
}

func (s *server) versionCheck() Check {
	if s.version < versionLeast {
		return Check{"version", Fail, fmt.Sprintf("Postgres %d.%d; Lethe needs 14 or later", s.version/10000, s.version%10000), "upgrade Postgres"}
	}
	return Check{"version", OK, fmt.Sprintf("Postgres %d.%d", s.version/10000, s.version%10000), ""}
}

func (s *server) primaryCheck() Check {
	if s.inRecovery {
		return Check{"primary", Fail, "this server is a standby; its snapshots do not tell which commits are visible",
			"let LETHE_POSTGRES_URL name the primary, for instance with target_session_attrs=read-write"}
	}
	return Check{"primary", OK, "this server is the primary", ""}
}

func (s *server) walLevel() Check {
	if s.walLevel_ != "logical" {
		return Check{"wal_level", Fail, "wal_level is " + s.walLevel_ + ": the log does not carry rows", "ALTER SYSTEM SET wal_level = 'logical'; and restart Postgres"}
	}
	return Check{"wal_level", OK, "logical", ""}
}

func (s *server) freeSlots() Check {
	detail := fmt.Sprintf("%d of %d in use", s.slots, s.maxSlots)
	if s.slot == nil && s.slots >= s.maxSlots {
		return Check{"max_replication_slots", Fail, detail + ": none is left for Lethe",
			fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; and restart Postgres", s.maxSlots+5)}
	}
	return Check{"max_replication_slots", OK, detail, ""}
}

func (s *server) freeSenders() Check {
	detail := fmt.Sprintf("%d of %d in use", s.senders, s.maxSenders)
	if (s.slot == nil || !s.slot.active) && s.senders >= s.maxSenders {
		return Check{"max_wal_senders", Fail, detail + ": none is left for Lethe",
			fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; and restart Postgres", s.maxSenders+5)}
	}
	return Check{"max_wal_senders", OK, detail, ""}
}

func (s *server) replicationRight() Check {
	if !s.mayReplicate {
		return Check{"replication privilege", Fail, fmt.Sprintf("role %s may not stream the log", s.user),
			fmt.Sprintf("ALTER ROLE %s REPLICATION; (on RDS: GRANT rds_replication TO %s;)", quote(s.user), quote(s.user))}
	}
	return Check{"replication privilege", OK, fmt.Sprintf("role %s may stream the log", s.user), ""}
}

func (s *server) slotChecks(cfg Config) []Check {
	const name = "slot"
	drop := fmt.Sprintf("SELECT pg_drop_replication_slot('%s'); or set LETHE_SLOT", cfg.Slot)
	l := s.slot
	if l == nil {
		return []Check{{name, OK, cfg.Slot + " will be made at the start of `lethe run`", ""}}
	}
	c := Check{Name: name, Status: OK, Detail: fmt.Sprintf("%s keeps %d MB of WAL", cfg.Slot, l.retainedMB)}
	switch {
	case l.plugin != "pgoutput" || l.database != s.database || l.temporary:
		c.Status, c.Fix = Fail, drop
		c.Detail = fmt.Sprintf("%s is a slot of plugin %q, database %q, temporary %v: not one of Lethe's for this database", cfg.Slot, l.plugin, l.database, l.temporary)
	case l.status == "lost":
		c.Status, c.Fix = Warn, "start `lethe run`; and raise max_slot_wal_keep_size so that it does not happen again"
		c.Detail = "the server has thrown away WAL that the slot needs: it will be made anew, and everything cached forgotten"
	case l.status == "unreserved":
		c.Status, c.Fix = Warn, "start `lethe run`, or raise max_slot_wal_keep_size"
		c.Detail = fmt.Sprintf("the WAL of the slot (%d MB) is about to be thrown away", l.retainedMB)
	}
	checks := []Check{c}
	if s.version < versionFailover {
		return checks
	}
	switch {
	case !l.failover:
		checks = append(checks, Check{"slot survives a failover", Warn, "it is not a failover slot: after a promotion it is gone, and everything cached forgotten",
			"drop it while Lethe is stopped; `lethe run` makes it with failover = true"})
	case s.standbySlots == "":
		checks = append(checks, Check{"slot survives a failover", Warn, "synchronized_standby_slots is empty: Lethe may be ahead of the standby that is promoted",
			"ALTER SYSTEM SET synchronized_standby_slots = '<slots of the standbys>'; and sync_replication_slots = on there"})
	default:
		checks = append(checks, Check{"slot survives a failover", OK, "failover slot, standbys " + s.standbySlots, ""})
	}
	if s.idleSlotTimeout != "0" {
		checks = append(checks, Check{"idle_replication_slot_timeout", Warn, "the slot is invalidated when Lethe was down for " + s.idleSlotTimeout,
			"ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();"})
	}
	return checks
}

func (s *server) walBudget() Check {
	if s.keepSizeMB < 0 {
		return Check{"max_slot_wal_keep_size", Warn, "unlimited: while Lethe is down, the WAL that it has not read can fill the disk",
			"ALTER SYSTEM SET max_slot_wal_keep_size = '<what the disk can spare>'; SELECT pg_reload_conf();"}
	}
	return Check{"max_slot_wal_keep_size", OK, fmt.Sprintf("%d MB", s.keepSizeMB), ""}
}

func (s *server) senderTimeout() Check {
	fix := "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"
	switch {
	case s.senderTimeoutMS == 0:
		return Check{"wal_sender_timeout", Warn, "off: a reader that died without a word holds the slot for ever", fix}
	case s.senderTimeoutMS < senderTimeoutLeastMS:
		return Check{"wal_sender_timeout", Warn, fmt.Sprintf("%d ms: a short pause cuts the stream", s.senderTimeoutMS), fix}
	}
	return Check{"wal_sender_timeout", OK, fmt.Sprintf("%d s", s.senderTimeoutMS/1000), ""}
}

func (s *server) synchronous() Check {
	const name = "synchronous_standby_names"
	switch {
	case s.syncNames == "":
		return Check{name, OK, "not set: commits are visible as soon as they are flushed", ""}
	case s.syncKnown && s.syncConnected == 0:
		return Check{name, Warn, fmt.Sprintf("%q is set and no such standby is connected: commits hang, and their invalidations with them", s.syncNames),
			"bring the standby back, or take it out of synchronous_standby_names"}
	}
	return Check{name, OK, fmt.Sprintf("%q: invalidations wait with their commits for the standby", s.syncNames), ""}
}

func migrationChecks(ctx context.Context, conn *pgx.Conn, s *server) ([]Check, error) {
	pending, err := migrations.Pending(ctx, conn)
	if err != nil {
		return nil, err
	}
	var checks []Check
	s.guardInstalled = !slices.Contains(pending, migrations.Guard)
	for _, name := range pending {
		checks = append(checks, Check{"migration " + name, Warn, "not applied. " + migrations.Lost(name),
			fmt.Sprintf("let a superuser run `lethe migrate --role %s`", s.user)})
	}
	if len(pending) == 0 {
		checks = append(checks, Check{"migrations", OK, "all applied", ""})
	}
	if !s.sourceWritable && len(pending) == 0 {
		checks = append(checks, Check{"lethe.source", Warn, fmt.Sprintf("role %s may not write it: everything cached is forgotten at every start, and stamps are not used", s.user),
			fmt.Sprintf("GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.source, lethe.dead_letters TO %s;", quote(s.user))})
	}
	return checks, nil
}
