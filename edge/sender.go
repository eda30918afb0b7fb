package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// sender tells one endpoint, one request at a time.
type sender struct {
	s *Sink
	e *endpoint
	// accepted is true once the endpoint has taken something; unfit counts the
	// names since that it did not take.
	accepted bool
	unfit    int
	counted  time.Time
}

// unfitMost is how many names in a row an endpoint may refuse before it is the
// endpoint, not the names, that something is wrong with.
const unfitMost = 3

// countEvery is how often what waits is counted, for the metrics.
const countEvery = 5 * time.Second

func (s *Sink) newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(s.cfg.RetryFirst), backoff.WithMaxInterval(s.cfg.RetryMost),
		backoff.WithMultiplier(2), backoff.WithMaxElapsedTime(0))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

func (s *sender) run(ctx context.Context) {
	for ctx.Err() == nil {
		s.count(ctx)
		rows, err := s.s.outbox.take(ctx, s.e.Name, s.s.cfg.Lease)
		if err == nil && len(rows) > 0 {
			d := deliveryOf(s.e.EdgeCache, rows)
			err = s.deliver(ctx, d)
			if err == nil {
				continue
			}
			if ctx.Err() != nil {
				s.giveBack(ctx, d.ids)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.s.cfg.Logger.WarnContext(ctx, "edge", "endpoint", s.e.Name, "error", err)
		}
		t := time.NewTimer(s.s.cfg.Poll)
		select {
		case <-s.kicked(err):
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// kicked is nil after an error: a pause then, whatever else comes.
func (s *sender) kicked(err error) <-chan struct{} {
	if err != nil {
		return nil
	}
	return s.e.kick
}

// giveBack ends the lease of rows that are not told to the end, for whoever
// comes next. If that fails they wait for its end.
func (s *sender) giveBack(ctx context.Context, ids []int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = s.s.outbox.renew(ctx, ids, 0)
}

// deliver posts what a delivery says, all of it, however long that takes, and
// notes that it was told.
func (s *sender) deliver(ctx context.Context, d *delivery) error {
	lease := &lease{outbox: &s.s.outbox, ids: d.ids, length: s.s.cfg.Lease, until: time.Now().Add(s.s.cfg.Lease)}
	batches := batches(s.e.EdgeCache, d.names)
	if d.everything {
		batches = [][]name{nil}
	}
	for _, names := range batches {
		if err := s.tell(ctx, lease, d, names); err != nil {
			if errors.Is(err, errReplaced) {
				return nil // one row says everything instead
			}
			return err
		}
	}
	return s.s.outbox.told(ctx, d.first, d.second, s.e.Again)
}

// errReplaced says that the rows of a delivery are gone.
var errReplaced = errors.New("everything is to be told instead")

// errUndecided says that an endpoint does not take a single name, and has taken
// nothing before it, or not the last ones either: whose fault that is is not
// known, so the rows stay for later and others go first.
var errUndecided = errors.New("the endpoint does not take a name, and has not taken another lately")

// lease keeps rows from others while they are told.
type lease struct {
	outbox *outbox
	ids    []int64
	length time.Duration
	until  time.Time
}

// keep renews it when less than half is left.
func (l *lease) keep(ctx context.Context) error {
	if time.Until(l.until) > l.length/2 {
		return nil
	}
	now := time.Now()
	left, err := l.outbox.renew(ctx, l.ids, l.length)
	if err != nil {
		return err
	}
	if !left {
		return errReplaced
	}
	l.until = now.Add(l.length)
	return nil
}

// tell posts some names until the endpoint has taken them; none is everything.
func (s *sender) tell(ctx context.Context, l *lease, d *delivery, names []name) error {
	d.requests++
	id := fmt.Sprintf("%d.%d", d.ids[0], d.requests)
	wait := s.s.newBackoff()
	told := ""
	for {
		if err := l.keep(ctx); err != nil {
			return err
		}
		r := write(s.e.EdgeCache, s.e.credentials, s.s.cfg.Namespace, id, d.position, names)
		a := s.post(ctx, r)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if a.result == resultUnfit {
			switch {
			case len(names) > 1:
				// One of them may be at fault; the others go.
				half := len(names) / 2
				if err := s.tell(ctx, l, d, names[:half]); err != nil {
					return err
				}
				return s.tell(ctx, l, d, names[half:])
			case len(names) == 1 && s.accepted && s.unfit < unfitMost:
				s.unfit++
				s.bury(ctx, names[0], a.err)
				return nil
			case len(names) == 1:
				s.s.metrics.requests.WithLabelValues(s.e.Name, resultUnfit).Inc()
				return fmt.Errorf("%w: %w", errUndecided, a.err)
			}
			a.result = resultRefused
		}
		s.s.metrics.requests.WithLabelValues(s.e.Name, a.result).Inc()
		if a.result == resultDone {
			s.accepted, s.unfit = true, 0
			s.s.metrics.up.WithLabelValues(s.e.Name).Set(1)
			s.s.metrics.names.WithLabelValues(s.e.Name).Add(float64(len(names)))
			return nil
		}
		s.s.metrics.up.WithLabelValues(s.e.Name).Set(0)
		if a.result != told { // each trouble once, or an outage would fill the log
			told = a.result
			if told == resultRefused {
				s.s.cfg.Logger.ErrorContext(ctx, "an edge refuses us, which no repetition cures: correct its url or credentials; what it is to be told waits",
					"endpoint", s.e.Name, "error", a.err)
			} else {
				s.s.cfg.Logger.WarnContext(ctx, "an edge does not take what it is told, repeating it", "endpoint", s.e.Name, "error", a.err)
			}
		}
		if err := s.rest(ctx, l, max(wait.NextBackOff(), a.after)); err != nil {
			return err
		}
	}
}

// rest waits without losing the lease.
func (s *sender) rest(ctx context.Context, l *lease, d time.Duration) error {
	for end := time.Now().Add(d); ; {
		s.count(ctx)
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := pause(ctx, min(left, l.length/4)); err != nil {
			return err
		}
		if err := l.keep(ctx); err != nil {
			return err
		}
	}
}

// bury gives up a name that the endpoint does not take.
func (s *sender) bury(ctx context.Context, n name, err error) {
	s.s.metrics.requests.WithLabelValues(s.e.Name, resultUnfit).Inc()
	s.s.metrics.deadLetters.WithLabelValues(s.e.Name).Inc()
	s.s.cfg.Logger.ErrorContext(ctx, "an edge does not take a name, so it was not told of it", "endpoint", s.e.Name, "name", n.text, "error", err)
	if s.s.cfg.DeadLetter != nil {
		s.s.cfg.DeadLetter(ctx, s.e.Name, n.text, err)
	}
}

// count keeps the gauges.
func (s *sender) count(ctx context.Context) {
	if time.Since(s.counted) < countEvery {
		return
	}
	s.counted = time.Now()
	if names, age, err := s.s.outbox.waiting(ctx, s.e.Name); err == nil {
		s.s.metrics.waiting.WithLabelValues(s.e.Name).Set(float64(names))
		s.s.metrics.age.WithLabelValues(s.e.Name).Set(age.Seconds())
	}
}

// answer is what came of a request.
type answer struct {
	result string
	err    error
	// after is how long the endpoint asks us to wait.
	after time.Duration
}

// answerMost is how much of an answer is read.
const answerMost = 16 << 10

// post sends a request once.
func (s *sender) post(ctx context.Context, r request) answer {
	ctx, cancel := context.WithTimeout(ctx, s.e.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(r.body))
	if err != nil {
		return answer{result: resultRefused, err: err}
	}
	r.sign(s.e.credentials.secret, time.Now())
	req.Header = r.header
	resp, err := s.s.client.Do(req)
	if err != nil {
		return answer{result: resultError, err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, answerMost))
	if err != nil {
		return answer{result: resultError, err: err}
	}
	return judge(resp, text)
}

// afterMost bounds how long an endpoint may ask us to wait.
const afterMost = 5 * time.Minute

// judge says what an answer means for the next request.
func judge(resp *http.Response, text []byte) answer {
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return answer{result: resultDone}
	}
	a := answer{err: fmt.Errorf("POST %s: %s: %.200q", resp.Request.URL.Redacted(), resp.Status, text)}
	switch {
	case code == http.StatusTooManyRequests:
		a.result = resultLimited
	case code >= 500 || code == http.StatusRequestTimeout || code == http.StatusTooEarly:
		a.result = resultError
	case code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusRequestURITooLong ||
		code == http.StatusUnprocessableEntity || code == http.StatusRequestHeaderFieldsTooLarge:
		a.result = resultUnfit
	default:
		a.result = resultRefused
	}
	if after := resp.Header.Get("Retry-After"); after != "" {
		if seconds, err := strconv.Atoi(after); err == nil {
			a.after = time.Duration(seconds) * time.Second
		} else if at, err := http.ParseTime(after); err == nil {
			a.after = time.Until(at)
		}
		a.after = min(max(a.after, 0), afterMost)
	}
	return a
}
