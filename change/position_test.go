package change

import (
	"encoding/json"
	"testing"
)

// Logs in JSON show positions as people know them, not as numbers.
func TestPositionsInJSON(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(struct {
		At LSN
		X  Position
	}{0x16B374D848, Position{1, 0x18}})
	want := `{"At":"16/B374D848","X":"00010000000000000018"}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestLSNText(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		lsn  LSN
		text string
	}{{0, "0/0"}, {0x16B374D848, "16/B374D848"}, {1<<64 - 1, "FFFFFFFF/FFFFFFFF"}} {
		if got := tc.lsn.String(); got != tc.text {
			t.Errorf("String(%d) = %q, want %q", uint64(tc.lsn), got, tc.text)
		}
		if got, err := ParseLSN(tc.text); err != nil || got != tc.lsn {
			t.Errorf("ParseLSN(%q) = %d, %v, want %d", tc.text, got, err, tc.lsn)
		}
	}
	if _, err := ParseLSN("16B374D848"); err == nil {
		t.Error("ParseLSN without a slash: no error")
	}
}

// Positions beyond 2^53 compare exactly, as numbers and as texts: a double
// would call 2^53 and 2^53 + 1 the same (PROTOCOL H12).
func TestLsnCompareBeyond253(t *testing.T) {
	t.Parallel()
	ordered := []Position{
		{}, {0, 1}, {0, 1 << 53}, {0, 1<<53 + 1}, {0, 1<<64 - 1}, {1, 0}, {1, 1<<53 + 1}, {9, 5}, {10, 4}, {1<<16 - 1, 1<<64 - 1},
	}
	for i, p := range ordered {
		for j, q := range ordered {
			if got, want := p.Less(q), i < j; got != want {
				t.Errorf("%s.Less(%s) = %v, want %v", p, q, got, want)
			}
			if got, want := q.Covers(p), i < j; got != want {
				t.Errorf("%s.Covers(%s) = %v, want %v", q, p, got, want)
			}
			if got, want := p.String() < q.String(), i < j; got != want {
				t.Errorf("text %s < %s is %v, want %v", p, q, got, want)
			}
		}
		if back, err := ParsePosition(p.String()); err != nil || back != p {
			t.Errorf("ParsePosition(%s) = %v, %v", p, back, err)
		}
		if got := p.Max(ordered[0]); got != p {
			t.Errorf("%s.Max(zero) = %s", p, got)
		}
	}
}

func TestBound(t *testing.T) {
	t.Parallel()
	for insert, want := range map[LSN]LSN{0: 0, 39: 0, 40: 0, 41: 1, 1000: 960} {
		if got := Bound(insert); got != want {
			t.Errorf("Bound(%d) = %d, want %d", insert, got, want)
		}
	}
}
