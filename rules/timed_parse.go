package rules

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// timeForm is how Postgres prints a timestamptz, a timestamp and a date in ISO
// style: years of four digits or more, an offset of hours, minutes and seconds.
var timeForm = regexp.MustCompile(
	`^([0-9]{4,7})-([0-9]{2})-([0-9]{2})(?:[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?(?:Z|([+-])([0-9]{2})(?::?([0-9]{2}))?(?::?([0-9]{2}))?)?)?( BC)?$`)

// parseTime reads the text of a time. What has no zone is UTC. never is true of
// infinity, which does not come; -infinity is past.
func parseTime(text []byte) (at time.Time, never bool, err error) {
	switch string(text) {
	case "infinity":
		return time.Time{}, true, nil
	case "-infinity":
		return time.Time{}, false, nil
	}
	m := timeForm.FindStringSubmatch(string(text))
	if m == nil {
		return time.Time{}, false, fmt.Errorf("%.40q is no time", text)
	}
	n := func(i int) int {
		v, _ := strconv.Atoi(m[i]) // digits, or nothing
		return v
	}
	year := n(1)
	if m[12] != "" {
		year = 1 - year
	}
	micros, _ := strconv.Atoi((m[7] + "000000")[:6])
	at = time.Date(year, time.Month(n(2)), n(3), n(4), n(5), n(6), micros*1000, time.UTC)
	if at.Year() != year || int(at.Month()) != n(2) || at.Day() != n(3) || at.Hour() != n(4) || at.Minute() != n(5) || at.Second() != n(6) {
		return time.Time{}, false, fmt.Errorf("%.40q is no time", text)
	}
	offset := time.Duration(n(9))*time.Hour + time.Duration(n(10))*time.Minute + time.Duration(n(11))*time.Second
	if m[8] == "-" {
		offset = -offset
	}
	return at.Add(-offset), false, nil
}
