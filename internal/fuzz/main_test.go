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
