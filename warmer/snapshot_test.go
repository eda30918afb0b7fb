package warmer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func snapshotFile(t *testing.T, names ...SnapshotName) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hot.ndjson")
	if err := SaveSnapshot(path, "shop", names); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSnapshotRoundTrip(t *testing.T) {
	t.Parallel()
	want := []SnapshotName{{"product", "product:1", 1500}, {"user", `user:"ü"<&>`, 0}, {"product", "product:2", 1}}
	path := snapshotFile(t, want...)
	got, header, err := ReadSnapshot(path, "shop")
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || header.Namespace != "shop" || header.Made.IsZero() {
		t.Errorf("%v %+v %v, want %v", got, header, err, want)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("beside the file stand others: %v %v", files, err)
	}
	if got, _, err := ReadSnapshot(snapshotFile(t), "shop"); err != nil || len(got) != 0 {
		t.Errorf("nothing hot: %v %v", got, err)
	}
	// A file that can not be written whole leaves the one that is there.
	if err := SaveSnapshot(filepath.Join(path, "below"), "shop", nil); err == nil {
		t.Error("a file below a file was written")
	}
}

// A file that is not whole, not one, or of another cache is refused before
// anything is done.
func TestSnapshotIsBelievedWholeOnly(t *testing.T) {
	t.Parallel()
	path := snapshotFile(t, SnapshotName{"product", "product:1", 0}, SnapshotName{"product", "product:2", 0})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	lines := strings.SplitAfter(text, "\n")
	for name, c := range map[string]struct{ text, want string }{
		"empty":         {"", "end is missing"},
		"not one":       {"hello\n", "does not begin"},
		"other JSON":    {"{}\n{}\n", "does not begin"},
		"changed":       {strings.Replace(text, "product:2", "product:3", 1), "damaged"},
		"cut":           {strings.Join(lines[:3], ""), "end is missing"},
		"line lost":     {lines[0] + lines[2] + lines[3], "damaged"},
		"line twice":    {lines[0] + lines[1] + lines[1] + lines[3], "damaged"},
		"line of noise": {lines[0] + "noise\n" + lines[3], "is no name"},
		"two files":     {text + text, "is no name"},
		"later version": {strings.Replace(text, `"version":1`, `"version":2`, 1), "version 2"},
		"half a line":   {text[:len(text)-10], "end is missing"},
	} {
		bad := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(bad, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		names, _, err := ReadSnapshot(bad, "shop")
		if !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), c.want) || names != nil {
			t.Errorf("%s: %v %v, want %q", name, names, err, c.want)
		}
	}
	if _, _, err := ReadSnapshot(path, "store"); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), `"store"`) {
		t.Errorf("another namespace: %v", err)
	}
	if _, _, err := ReadSnapshot(filepath.Join(t.TempDir(), "none"), "shop"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestLoadSnapshot(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	b.fillOK(t, "product", Options{}, Result{Stored: 1}, "product:2")
	var told []int
	got, err := b.LoadSnapshot(t.Context(), []SnapshotName{
		{"product", "product:1", 0}, {"gone", "gone:1", 0}, {"product", "product:2", 0}, {"product", "product:77", 0},
		{"product", "elsewhere:1", 0}, {"bare", "bare:1", 0}, {"gone", "gone:2", 0}, {"raw", "raw:1", 0},
	}, func(n int) { told = append(told, n) })
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got {
		lines = append(lines, fmt.Sprintf("%s %d %q stored %d present %d no row %d refused %v", r.Class, r.Names, r.Unknown, r.Stored, r.Present, r.NoRow, r.Refused))
	}
	wantLines(t, lines,
		`product 4 "" stored 1 present 1 no row 1 refused map[name:1]`,
		`gone 2 "the rules have no such entry" stored 0 present 0 no row 0 refused map[]`,
		`bare 1 "class has no loader" stored 0 present 0 no row 0 refused map[]`,
		`raw 1 "" stored 1 present 0 no row 0 refused map[]`)
	if fmt.Sprint(told) != "[8]" {
		t.Errorf("told %v", told)
	}
}
