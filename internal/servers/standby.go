package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// StandbyConfig says how a standby differs from its primary.
type StandbyConfig struct {
	// Settings override those that the primary was started with, such as
	// recovery_min_apply_delay.
	Settings map[string]string
	// Name is the application_name of its connection to the primary, which
	// synchronous_standby_names refers to, and the name of its slot there; the
	// default is standby_PORT.
	Name string
}

// Standby starts a streaming hot standby of p, of the same version, and returns
// when it accepts read-only connections. It follows through a physical slot of
// its own, so that it may be stopped for a while; Close drops the slot.
//
// The copy is made through the backup functions instead of pg_basebackup, which
// the embedded binaries lack: one way for every version.
func (p *Postgres) Standby(ctx context.Context, cfg StandbyConfig) (*Postgres, error) {
	settings := maps.Clone(p.settings)
	maps.Copy(settings, cfg.Settings)
	s, err := newPostgres(p.install, settings, filepath.Dir(p.scratch.dir))
	if err != nil {
		return nil, err
	}
	s.slot = cfg.Name
	if s.slot == "" {
		s.slot = "standby_" + strconv.Itoa(s.Port())
	}
	if err := s.follow(ctx, p); err != nil {
		return nil, errors.Join(fmt.Errorf("start a standby: %w", err), s.Close())
	}
	return s, nil
}

func (p *Postgres) follow(ctx context.Context, primary *Postgres) error {
	conn, err := pgconn.Connect(ctx, primary.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to the primary: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	// The slot first, and reserving at once: it keeps every segment from the
	// checkpoint of the backup on.
	if _, err := conn.Exec(ctx, "SELECT pg_create_physical_replication_slot('"+p.slot+"', true)").ReadAll(); err != nil {
		return fmt.Errorf("create slot %s: %w", p.slot, err)
	}
	p.primary = primary

	start, stop := "pg_backup_start('standby', true)", "pg_backup_stop(false)"
	if primary.versionNum < 150000 {
		start, stop = "pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, "SELECT "+start).ReadAll(); err != nil {
		return fmt.Errorf("start a backup: %w", err)
	}
	if err := p.copyFrom(primary.DataDir()); err != nil {
		return err
	}
	res := conn.ExecParams(ctx, "SELECT labelfile FROM "+stop, nil, nil, nil, nil).Read()
	if res.Err != nil {
		return fmt.Errorf("stop the backup: %w", res.Err)
	}
	conninfo := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres application_name=%s", primary.Port(), p.slot)
	err = errors.Join(
		p.write("backup_label", string(res.Rows[0][0])),
		p.write("standby.signal", ""),
		p.configure(map[string]string{"hot_standby": "on", "primary_conninfo": conninfo, "primary_slot_name": p.slot}),
	)
	if err != nil {
		return err
	}
	return p.Start(ctx)
}

// leftOut names what a base backup leaves out: contents of these directories
// belong to the running primary or are rebuilt at the start.
var leftOut = map[string]bool{
	"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true,
	"pg_serial": true, "pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true,
}

func (p *Postgres) copyFrom(src string) error {
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // dropped meanwhile; the WAL knows
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil || rel == "." {
			return err
		}
		dst := p.data(rel)
		if d.IsDir() {
			if err := errors.Join(os.Mkdir(dst, 0o700), p.user.own(dst)); err != nil {
				return err
			}
			if rel == "pg_wal" { // the one skipped directory with a folder that must exist
				status := filepath.Join(dst, "archive_status")
				err = errors.Join(os.Mkdir(status, 0o700), p.user.own(status))
			}
			if err == nil && leftOut[rel] {
				return fs.SkipDir
			}
			return err
		}
		if !d.Type().IsRegular() || rel == "postmaster.pid" || rel == "postmaster.opts" ||
			d.Name() == "pg_internal.init" || strings.HasPrefix(d.Name(), "pgsql_tmp") {
			return nil
		}
		return p.copyFile(dst, path)
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", src, err)
	}
	return nil
}

func (p *Postgres) copyFile(dst, src string) error {
	in, err := os.Open(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), p.user.own(dst))
}

// Promote makes a standby a primary on a new timeline and returns when it is
// one. Its old primary is left alone.
func (p *Postgres) Promote(ctx context.Context) error {
	if p.primary == nil {
		return errors.New("promote postgres: it is a primary")
	}
	conn, err := pgconn.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return fmt.Errorf("promote postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	res := conn.ExecParams(ctx, "SELECT pg_promote(true, 60)", nil, nil, nil, nil).Read()
	if res.Err != nil {
		return fmt.Errorf("promote postgres: %w", res.Err)
	}
	if string(res.Rows[0][0]) != "t" {
		return fmt.Errorf("promote postgres: not done after 60 s\n%s", p.proc.tail())
	}
	return nil
}

// forgetSlot drops a closed standby's slot, else its primary would keep WAL for
// ever. The walsender may need a moment to notice that the standby is gone.
func (p *Postgres) forgetSlot() error {
	if p.primary == nil || !p.primary.Running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.primary.proc.ready(ctx, func(ctx context.Context) error {
		return p.primary.Exec(ctx, "postgres",
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '"+p.slot+"'")
	})
}
