package change

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// readEvent reads a testdata file: the key and the value of a Kafka message.
func readEvent(t testing.TB, path string) (key, value []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Key, Value json.RawMessage }
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	if string(e.Value) == "null" {
		e.Value = nil // a tombstone has no value at all
	}
	if string(e.Key) == "null" {
		e.Key = nil
	}
	return e.Key, e.Value
}

func TestDebeziumGolden(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join("testdata", "debezium", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no events: %v", err)
	}
	var d DebeziumDecoder
	var r Record
	for _, path := range paths {
		key, value := readEvent(t, path)
		got := ""
		if err := d.Decode(&r, key, value); err != nil {
			got = "error " + err.Error() + "\n"
		} else {
			got = r.Dump()
		}
		golden := strings.TrimSuffix(path, ".json") + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: decoded\n%s\nwant\n%s", path, got, want)
		}
		if !r.InsertLSN || r.V != 0 || len(r.Changes) > 0 && r.Changes[0].Commit.LSN != 0 {
			t.Errorf("%s: a row's LSN was taken for the commit's", path)
		}
	}
}

func TestDebeziumInternsTables(t *testing.T) {
	t.Parallel()
	key, value := readEvent(t, filepath.Join("testdata", "debezium", "insert_plain.json"))
	var d DebeziumDecoder
	var a, b Record
	if err := d.Decode(&a, key, value); err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(&b, key, value); err != nil {
		t.Fatal(err)
	}
	if a.Changes[0].Table != b.Changes[0].Table {
		t.Error("two events of one table have two *Tables")
	}
}

func TestDebeziumRefuses(t *testing.T) {
	t.Parallel()
	const source = `"source":{"schema":"public","table":"t"}`
	for name, tc := range map[string]struct{ value, want string }{
		"not json":         {`{`, "unexpected end"},
		"a number":         {`7`, "cannot unmarshal"},
		"flattened":        {`{"id":1,"name":"x"}`, "no op"},
		"unknown op":       {`{"op":"z"}`, `unknown op "z"`},
		"no table":         {`{"op":"c","after":{"id":1}}`, "without source.table"},
		"insert of none":   {`{"op":"c",` + source + `}`, "without after"},
		"delete of none":   {`{"op":"d",` + source + `}`, "without before"},
		"row is a list":    {`{"op":"c","after":[1],` + source + `}`, "want an object"},
		"message of none":  {`{"op":"m",` + source + `}`, "without a message"},
		"schema is a list": {`{"schema":[],"payload":{"op":"c"}}`, "schema"},
		"bad decimal": {`{"schema":{"fields":[{"field":"after","fields":[{"field":"p","type":"bytes","name":"org.apache.kafka.connect.data.Decimal"}]}]},
			"payload":{"op":"c","after":{"p":"AQ=="},` + source + `}}`, `column p: decimal with the scale ""`},
	} {
		var r Record
		err := new(DebeziumDecoder).Decode(&r, nil, []byte(tc.value))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestConnectValues(t *testing.T) {
	t.Parallel()
	const connect, debezium = "org.apache.kafka.connect.data.", "io.debezium."
	decimal := func(scale string) *connectSchema {
		return &connectSchema{Type: "bytes", Name: connect + "Decimal", Parameters: map[string]string{"scale": scale}}
	}
	named := func(typ, name string) *connectSchema { return &connectSchema{Type: typ, Name: debezium + name} }
	for _, tc := range []struct {
		raw    string
		schema *connectSchema
		want   string
	}{
		{`1`, nil, "1"}, {`-12345678901234567890123`, nil, "-12345678901234567890123"}, {`true`, nil, "t"}, {`false`, nil, "f"},
		{`"ü\n\"x"`, nil, "ü\n\"x"}, {`{"a": [1, 2]}`, nil, `{"a":[1,2]}`}, {`[1,2]`, nil, "{1,2}"},
		{`1.0`, nil, "1"}, {`0.1`, nil, "0.1"}, {`1e15`, nil, "1e+15"}, {`123456789012345.0`, nil, "123456789012345"},
		{`1.0E-5`, nil, "1e-05"}, {`0.0001`, nil, "0.0001"}, {`0.0`, nil, "0"}, {`-0.0`, nil, "-0"},
		{`1000000.0`, &connectSchema{Type: "float"}, "1e+06"}, {`100000.5`, &connectSchema{Type: "float"}, "100000.5"},
		{`1000000.0`, &connectSchema{Type: "double"}, "1000000"}, {`"NaN"`, &connectSchema{Type: "double"}, "NaN"},
		{`12`, &connectSchema{Type: "int16"}, "12"}, {`"x"`, &connectSchema{Type: "string"}, "x"},
		{`"AAEC/w=="`, &connectSchema{Type: "bytes"}, `\x000102ff`}, {`""`, &connectSchema{Type: "bytes"}, `\x`},
		{`"BOI="`, decimal("2"), "12.50"}, {`"+x4="`, decimal("2"), "-12.50"}, {`"AA=="`, decimal("2"), "0.00"},
		{`"AQ=="`, decimal("3"), "0.001"}, {`"/w=="`, decimal("0"), "-1"}, {`"AQ=="`, decimal("-2"), "100"}, {`12.5`, decimal("1"), "12.5"},
		{`{"scale":1,"value":"fQ=="}`, named("struct", "data.VariableScaleDecimal"), "12.5"},
		{`0`, named("int32", "time.Date"), "1970-01-01"}, {`-719528`, named("int32", "time.Date"), "0001-01-01 BC"},
		{`20778`, &connectSchema{Type: "int32", Name: connect + "Date"}, "2026-11-21"},
		{`1795264201123`, named("int64", "time.Timestamp"), "2026-11-21 12:30:01.123"},
		{`1795264201123456`, named("int64", "time.MicroTimestamp"), "2026-11-21 12:30:01.123456"},
		{`1795264201000000`, named("int64", "time.MicroTimestamp"), "2026-11-21 12:30:01"},
		{`1795264201500000000`, named("int64", "time.NanoTimestamp"), "2026-11-21 12:30:01.5"},
		{`9223372036825200000`, named("int64", "time.MicroTimestamp"), "infinity"},
		{`-9223372036832400000`, named("int64", "time.MicroTimestamp"), "-infinity"},
		{`"2026-11-21T12:30:01.5Z"`, named("string", "time.ZonedTimestamp"), "2026-11-21 12:30:01.5+00"},
		{`"2026-11-22T00:30:01+02:00"`, named("string", "time.ZonedTimestamp"), "2026-11-21 22:30:01+00"},
		{`"infinity"`, named("string", "time.ZonedTimestamp"), "infinity"},
		{`"12:30:01.25Z"`, named("string", "time.ZonedTime"), "12:30:01.25+00"},
		{`45001500`, named("int32", "time.Time"), "12:30:01.5"}, {`86400000000`, named("int64", "time.MicroTime"), "24:00:00"},
		{`45001000000000`, named("int64", "time.NanoTime"), "12:30:01"},
		{`"BQ=="`, &connectSchema{Type: "bytes", Name: debezium + "data.Bits", Parameters: map[string]string{"length": "4"}}, "0101"},
		{`["a","b c",null,"","null","{x}","q\"\\"]`, &connectSchema{Type: "array", Items: &connectSchema{Type: "string"}}, `{a,"b c",NULL,"","null","{x}","q\"\\"}`},
		{`[[1,2],[3,4]]`, &connectSchema{Type: "array", Items: &connectSchema{Type: "array", Items: &connectSchema{Type: "int32"}}}, "{{1,2},{3,4}}"},
	} {
		v, err := connectValue(json.RawMessage(tc.raw), tc.schema)
		if err != nil || v.Kind != Text || string(v.Bytes) != tc.want {
			t.Errorf("%s as %+v = %c %q (%v), want %q", tc.raw, tc.schema, v.Kind, v.Bytes, err, tc.want)
		}
	}
	for raw, want := range map[string]ValueKind{
		`null`: Null, `"__debezium_unavailable_value"`: Unchanged, `["__debezium_unavailable_value"]`: Unchanged,
		`{"__debezium_unavailable_value":"__debezium_unavailable_value"}`: Unchanged, `"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="`: Unchanged,
	} {
		if v, err := connectValue(json.RawMessage(raw), nil); err != nil || v.Kind != want {
			t.Errorf("%s has the kind %c (%v), want %c", raw, v.Kind, err, want)
		}
	}
	for _, tc := range []struct {
		raw    string
		schema *connectSchema
	}{
		{`"x"`, &connectSchema{Type: "int32"}}, {`"*"`, decimal("2")}, {`"AQ=="`, decimal("99999999")}, {`1`, named("string", "time.ZonedTime")},
		{`99999999999999999`, named("int32", "time.Time")}, {`9223372036854775807`, named("int32", "time.Date")}, {`-1`, named("int64", "time.MicroTime")},
	} {
		if v, err := connectValue(json.RawMessage(tc.raw), tc.schema); err == nil {
			t.Errorf("%s as %s = %q, want an error", tc.raw, tc.schema.Name, v.Bytes)
		}
	}
}

func FuzzDebezium(f *testing.F) {
	paths, _ := filepath.Glob(filepath.Join("testdata", "debezium", "*.json"))
	for _, p := range paths {
		key, value := readEvent(f, p)
		f.Add(key, value)
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		var d DebeziumDecoder
		var r, back Record
		if err := d.Decode(&r, key, value); err != nil {
			return
		}
		var e Encoder
		b, err := e.Append(nil, &r)
		if err != nil {
			return // a name beyond the format's limits
		}
		if err := new(Decoder).Decode(&back, b); err != nil {
			t.Fatalf("an event that can not be handed on: %v\n%s", err, r.Dump())
		}
		if got, want := fmt.Sprint(len(back.Changes)), fmt.Sprint(len(r.Changes)); got != want {
			t.Fatalf("%s changes, want %s", got, want)
		}
	})
}
