package cdc

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPacePausesOnlyUnderBacklog(t *testing.T) {
	t.Parallel()
	var paused int
	p := newPacer()
	p.sleep = func(time.Duration) { paused++ }
	now := time.Unix(0, 0)
	read := func(n int, after time.Duration) {
		p.before()
		now = now.Add(after)
		p.after(n, now)
	}
	// 5,000 transactions a second, three messages each: no backlog.
	for range 1000 {
		read(400, 66*time.Microsecond)
	}
	if paused != 0 {
		t.Fatalf("paused %d times at 15,000 messages a second", paused)
	}
	for i := 0; !p.on; i++ {
		if i == 2*paceReads {
			t.Fatal("does not pause at 200,000 messages a second")
		}
		read(400, 5*time.Microsecond)
	}
	paused = 0
	for range 100 {
		read(8<<10, 300*time.Microsecond) // what the pause let gather
	}
	if paused != 100 {
		t.Errorf("paused %d of 100 times while there was more each time", paused)
	}
	read(400, 300*time.Microsecond)
	if read(8<<10, 300*time.Microsecond); !p.on {
		t.Error("one small read ended the pauses: the server may not have had the processor")
	}
	for range paceSmall {
		read(400, 300*time.Microsecond)
	}
	paused = 0
	read(400, time.Second)
	if paused != 0 {
		t.Error("paused after it had caught up")
	}
}

// A segment that waits for more under a backlog does not wait when it ends.
func TestGatheringEndsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t)
		g.row(t, 2, "first")
		g.sink.waitEvent(t, "insert public.a id='first'")
		synctest.Wait()
		// The receiver waits in a read: nobody else looks at its pacer now.
		g.recv.wire.pace.on = true
		began := time.Now()
		g.row(t, 3, "x")
		g.sink.waitEvent(t, "insert public.a id='x'")
		if took := time.Since(began); took > gatherTime+2*pausePerRead {
			t.Errorf("handed on after %v", took)
		}
		time.Sleep(10 * pausePerRead) // virtual: the receiver is in a read again, not in a pause
		synctest.Wait()
	})
}
