package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFindsTargetsInTestFilesOnly(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	files := map[string]string{
		"b/b_test.go":          "package b\n\nfunc FuzzTwo(f *testing.F) {}\nfunc FuzzOne(f *testing.F) {}\n",
		"a/a_test.go":          "package a\n\n// func FuzzNot(f *testing.F)\nfunc TestX(t *testing.T) {}\nfunc FuzzA(fz *testing.F) {\n",
		"a/a.go":               "package a\n\nfunc FuzzHelper(f *testing.F) {}\n",
		"a/testdata/x_test.go": "package x\n\nfunc FuzzData(f *testing.F) {}\n",
		"top_test.go":          "package top\n\nfunc FuzzTop(f *testing.F) {}\n",
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := find(root)
	want := []target{{".", "FuzzTop"}, {"a", "FuzzA"}, {"b", "FuzzOne"}, {"b", "FuzzTwo"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("find() = %v, %v, want %v", got, err, want)
	}
}

// A process that stood still is asked again; an input that fails by itself is
// a failure, whatever the first message said.
func TestStalledInputIsTriedAgain(t *testing.T) {
	t.Parallel()
	out := "    fuzzing process hung or terminated unexpectedly: exit status 2\n    Failing input written to testdata/fuzz/FuzzA/9bb2\n"
	if got := stalled([]byte(out)); got != "9bb2" {
		t.Errorf("stalled = %q, want 9bb2", got)
	}
	if got := stalled([]byte("--- FAIL: FuzzA\n  Failing input written to testdata/fuzz/FuzzA/9bb2\n")); got != "" {
		t.Errorf("stalled = %q for a failure, want none", got)
	}
	dir, err := os.MkdirTemp(".", "_fuzz") // below the module, where ./... does not look
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	src := "package a\n\nimport \"testing\"\n\nfunc FuzzA(f *testing.F) {\n\tf.Fuzz(func(t *testing.T, n int) {\n\t\tif n == 7 {\n\t\t\tt.Fatal(n)\n\t\t}\n\t})\n}\n"
	corpus := filepath.Join(dir, "testdata", "fuzz", "FuzzA")
	if err := os.MkdirAll(corpus, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "a_test.go"), src)
	write(filepath.Join(corpus, "good"), "go test fuzz v1\nint(6)\n")
	write(filepath.Join(corpus, "bad"), "go test fuzz v1\nint(7)\n")
	fuzzA := target{filepath.ToSlash(dir), "FuzzA"}
	if out, err := rerun(t.Context(), fuzzA, "good"); err != nil {
		t.Errorf("an input that passes: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(corpus, "good")); !os.IsNotExist(err) {
		t.Errorf("the input is still there: %v", err)
	}
	if out, err := rerun(t.Context(), fuzzA, "bad"); err == nil {
		t.Errorf("an input that fails was let pass:\n%s", out)
	}
}
