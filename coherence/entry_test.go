package coherence

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

var update = flag.Bool("update", false, "rewrite golden files")

// vector is one golden entry. Programs in other languages read the file too.
type vector struct {
	Name    string `json:"name"`
	Hex     string `json:"hex"`
	State   string `json:"state"`
	Inc     string `json:"incarnation"`
	Header  Header `json:"header"`
	Payload string `json:"payload"`
}

var vectors = []struct {
	name    string
	header  Header
	payload string
}{
	{"empty", Header{State: StateEmpty, Incarnation: Incarnation{1, 2, 3, 4, 5, 6, 7, 8}}, ""},
	{"empty with a lease", Header{
		State: StateEmpty, Incarnation: Incarnation{0, 255, 10, 13, 26, 34, 39, 92},
		Lease: Lease{Holder: [8]byte{9, 8, 7, 6, 5, 4, 3, 2}, Until: 1_800_000_000_000_000},
	}, ""},
	{"least value", Header{State: StateValue}, ""},
	{"value", Header{
		State: StateValue, Incarnation: Incarnation{0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 1}, Generation: 1_793_000_000_000_001,
		Stamp: change.Position{Era: 3, LSN: 0x16_B374_D848}, Filled: 1_793_000_000_123_456,
		SoftExpiry: 1_793_000_003_000_000, HardExpiry: 1_793_000_003_600_000, LoadCost: 1234, ValueVersion: 2,
		Flags: FlagDegraded | FlagCompressed, Codec: CodecJSON, Lease: Lease{Holder: [8]byte{1}, Until: 5},
		Names: []Name{
			{Kind: NameTag, Name: "shop:category:7"}, {Kind: NameKey, Name: "shop:brand:é{x}"},
			{Kind: NameClass, Name: "brand", Generation: 1<<53 + 1},
		},
	}, `{"id":42}`},
	{"stale", Header{
		State: StateStale, Incarnation: Incarnation{255, 255, 255, 255, 255, 255, 255, 255}, Generation: 1<<64 - 1,
		Stamp: change.Position{Era: 0xffff, LSN: 1<<64 - 1}, StaleSince: 1_793_000_000_000_000, Flags: 0x80, Codec: 200,
	}, "\x00\xff"},
}

func TestEntryGoldenVectors(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "entries.json")
	if *update {
		var out []vector
		for _, v := range vectors {
			b, err := v.header.Append(nil, []byte(v.payload))
			must(t, err)
			out = append(out, vector{
				v.name, hex.EncodeToString(b), string(v.header.State), hex.EncodeToString(v.header.Incarnation[:]), v.header,
				hex.EncodeToString([]byte(v.payload)),
			})
		}
		b, err := json.MarshalIndent(out, "", "  ")
		must(t, err)
		must(t, os.WriteFile(path, append(b, '\n'), 0o644))
	}
	for i, golden := range readVectors(t) {
		want, err := hex.DecodeString(golden.Hex)
		must(t, err)
		v := vectors[i]
		got, err := v.header.Append([]byte("before"), []byte(v.payload))
		must(t, err)
		if !bytes.Equal(got[len("before"):], want) {
			t.Errorf("%s: wrote\n%x, want\n%x", v.name, got[len("before"):], want)
		}
		h, payload, err := Parse(want)
		if err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		if !reflect.DeepEqual(h, v.header) || !reflect.DeepEqual(h, golden.Header) {
			t.Errorf("%s: read %+v\nwant %+v\nfile %+v", v.name, h, v.header, golden.Header)
		}
		if string(payload) != v.payload {
			t.Errorf("%s: payload %q, want %q", v.name, payload, v.payload)
		}
	}
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "entries.json"))
	must(t, err)
	var golden []vector
	must(t, json.Unmarshal(b, &golden))
	if len(golden) != len(vectors) {
		t.Fatalf("%d golden vectors, want %d: run go test -run Golden -update", len(golden), len(vectors))
	}
	return golden
}

// The scripts see the same bytes as Go does.
func TestScriptsReadGoldenVectors(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for i, golden := range readVectors(t) {
			raw, err := hex.DecodeString(golden.Hex)
			must(t, err)
			k := b.name("vector:%d", i)
			v := vectors[i].header
			set := func() { must(t, b.rdb.Set(b.ctx(), k, raw, 0).Err()) }

			// BEGIN and FILL find state, incarnation and generation.
			set()
			ticket := b.begin(k, known(1)).Ticket
			if hex.EncodeToString(ticket.Incarnation[:]) != golden.Inc {
				t.Errorf("%s: ticket %x, want %s", golden.Name, ticket.Incarnation, golden.Inc)
			}
			if v.State != StateEmpty && v.Generation > 0 {
				ticket.Known.Generation = v.Generation - 1
				if got := b.fill(FillRequest{Ticket: ticket}); got != RefusedGeneration {
					t.Errorf("%s: fill below its generation: %v", golden.Name, got)
				}
			}
			ticket.Known.Generation = v.Generation
			if got := b.fill(FillRequest{Ticket: ticket}); got != Stored {
				t.Errorf("%s: fill: %v", golden.Name, got)
			}

			// keep and stale find state and stamp.
			x := v.Stamp
			set()
			got := b.invalidate(Invalidation{Name: k, X: x, Action: ActionKeep})
			want := Counts{Deleted: 1}
			if v.State == StateEmpty {
				want = Counts{Absent: 1}
			}
			if got.Counts != want {
				t.Errorf("%s: keep at its stamp: %+v, want %+v", golden.Name, got.Counts, want)
			}
			if v.State == StateValue && v.Stamp.LSN > 0 {
				set()
				x.LSN--
				got := b.invalidate(Invalidation{Name: k, X: x, Action: ActionKeep})
				if got.Kept != 1 {
					t.Errorf("%s: keep below its stamp: %+v", golden.Name, got.Counts)
				}
				after := b.header(k)
				if after.Incarnation == v.Incarnation {
					t.Errorf("%s: keep left the incarnation", golden.Name)
				}
				after.Incarnation = v.Incarnation
				if !reflect.DeepEqual(after, v) {
					t.Errorf("%s: keep changed more than the incarnation:\n%+v\n%+v", golden.Name, after, v)
				}
			}
		}
	})
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	value, err := vectors[3].header.Append(nil, []byte("payload"))
	must(t, err)
	edit := func(at int, c byte) []byte {
		b := bytes.Clone(value)
		b[at] = c
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":               nil,
		"a raw value":           []byte(`{"id": 42}`),
		"another version":       edit(0, 2),
		"no state":              edit(1, 'X'),
		"nine bytes":            value[:9],
		"cut in the header":     value[:50],
		"cut in the names":      value[:fixedLen+4],
		"generation in capital": edit(offGeneration, 'A'),
		"stamp not hexadecimal": edit(offStamp+3, 'g'),
		"too many names":        edit(offNamesLen, 0xff),
		"name of no kind":       edit(fixedLen, 'x'),
		"name too long":         edit(fixedLen+1, 0xff),
		"empty, and more":       append([]byte{1, 'E', 1, 2, 3, 4, 5, 6, 7, 8}, "more"...),
	} {
		if _, _, err := Parse(b); !errors.Is(err, ErrNotEntry) {
			t.Errorf("%s: error %v, want ErrNotEntry", name, err)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]Header{
		"no state":        {},
		"long name":       {State: StateValue, Names: []Name{{Kind: NameTag, Name: strings.Repeat("x", MaxNameLen+1)}}},
		"no kind":         {State: StateValue, Names: []Name{{Name: "x"}}},
		"tag, generation": {State: StateValue, Names: []Name{{Kind: NameTag, Name: "x", Generation: 1}}},
	} {
		got, err := h.Append([]byte("before"), nil)
		if err == nil || string(got) != "before" {
			t.Errorf("%s: %q, %v, want an error and nothing appended", name, got, err)
		}
	}
}

func FuzzEntry(f *testing.F) {
	for _, v := range vectors {
		b, err := v.header.Append(nil, []byte(v.payload))
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, payload, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrNotEntry) {
				t.Fatalf("error %v is no ErrNotEntry", err)
			}
			return
		}
		again, err := h.Append(nil, payload)
		if err != nil {
			t.Fatalf("what was read can not be written: %v", err)
		}
		if !bytes.Equal(again, b) && !(h.State == StateEmpty && h.Lease == (Lease{})) {
			t.Fatalf("read\n%x, wrote\n%x", b, again)
		}
		h2, payload2, err := Parse(again)
		if err != nil || !reflect.DeepEqual(h, h2) || !bytes.Equal(payload, payload2) {
			t.Fatalf("read %+v, then %+v (%v)", h, h2, err)
		}
	})
}
