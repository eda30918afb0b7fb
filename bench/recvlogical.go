package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// recvlogical drains slot up to end with Postgres's own client, over the unix
// socket and into /dev/null: what the walsender can give to a reader written in
// C that does nothing. It returns the rows per second.
func recvlogical(ctx context.Context, db *database, w *workload, slot string) (float64, error) {
	program, err := db.server.Tool("pg_recvlogical")
	if err != nil {
		return 0, err
	}
	if err := db.copySlot(ctx, w.slot(), slot); err != nil {
		return 0, err
	}
	defer func() { _ = db.dropSlot(context.WithoutCancel(ctx), slot) }()
	cmd := exec.CommandContext(ctx, program, "--start", "--slot="+slot, "--endpos="+w.end, "--file=/dev/null", "--no-loop",
		"--option=proto_version=1", "--option=publication_names="+publication,
		"--host="+db.server.SocketDir(), "--port="+strconv.Itoa(db.server.Port()), "--username=postgres", "--dbname=postgres")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start pg_recvlogical: %w", err)
	}
	ended := make(chan error, 1)
	var stop time.Time
	go func() {
		err := cmd.Wait()
		stop = time.Now()
		if err != nil {
			err = fmt.Errorf("run pg_recvlogical: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
		}
		ended <- err
	}()
	h, err := db.hold(ctx, slot, ended)
	if err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return 0, err
	}
	err = pause(ctx, settle)
	ahead, aheadErr := h.ahead(ctx, db, w)
	start, released := h.release()
	if err = errors.Join(err, aheadErr, released); err != nil {
		_ = cmd.Process.Kill()
		<-ended
		return 0, err
	}
	if err := <-ended; err != nil {
		return 0, err
	}
	return perSecond(w.rest(ahead), stop.Sub(start)), nil
}
