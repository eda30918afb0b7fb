package rules

import (
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of include. A tree of files that is deeper or wider was made by a
// mistake, most often by a link to a directory above.
const (
	maxFiles        = 64
	maxIncludeDepth = 8
)

// reading is a file that is being read, and by whom.
type reading struct {
	path  string // as findings call it
	id    string // the same for every way to write it
	depth int
	from  *reading
	// defaults are those in force for the file.
	defaults defaults
}

// fileID is equal for two paths of one file.
func fileID(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return filepath.Clean(path)
}

// include reads the files that the file at hand includes, in the order in which
// they are named, those of a pattern by name. They come after the file's own
// content, so that what two files disagree on is said of the included one.
func (b *builder) include(n *yaml.Node, by *reading) {
	d := b.d
	items, ok := d.list(n, "include")
	if !ok {
		return
	}
	if !b.disk {
		d.errorf(CodeInclude, d.place(n), "include has a meaning in files only: this text was not read from one")
		return
	}
	for _, item := range items {
		b.includeItem(item, by)
		b.d = d
	}
}

func (b *builder) includeItem(item *yaml.Node, by *reading) {
	d := b.d
	text, ok := d.text(item, "include")
	if !ok {
		return
	}
	item = resolve(item)
	at := d.place(item)
	if text == "" {
		d.errorf(CodeInclude, at, "include: the path is empty")
		return
	}
	paths, isPattern, err := included(by.path, text)
	switch {
	case err != nil:
		d.errorf(CodeInclude, at, "include: %q is no pattern: %s", text, err)
	case isPattern && len(paths) == 0:
		d.add(Warning, CodeIncludeNone, at, "nothing has to be done if files are to come", "include: no file matches %q", text)
	}
	for _, path := range paths {
		if !b.includeFile(path, at, by) {
			return
		}
		b.d = d
	}
}

// includeFile reads one file; false if there is no use in reading more.
func (b *builder) includeFile(path string, at place, by *reading) bool {
	d := b.d
	next := &reading{path: path, id: fileID(path), depth: by.depth + 1, from: by, defaults: by.defaults}
	for r := by; r != nil; r = r.from {
		if r.id == next.id {
			d.errorf(CodeInclude, at, "include: %s includes itself: %s", path, circle(by, next))
			return true
		}
	}
	if first, twice := b.files[next.id]; twice {
		d.errorf(CodeInclude, at, "include: %s is read already (%s)", path, first)
		return true
	}
	if next.depth > maxIncludeDepth {
		d.errorf(CodeLimit, at, "include: %s would be the %dth file in a row, the limit is %d", path, next.depth, maxIncludeDepth)
		return true
	}
	if len(b.set.Files) >= maxFiles {
		d.errorf(CodeLimit, at, "include: more than %d files", maxFiles)
		return false
	}
	data, err := readRegular(path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		d.errorf(CodeInclude, at, "include: read %s: %s", path, err)
		return true
	}
	b.files[next.id] = fmt.Sprintf("included by %s:%d", at.file, at.line)
	b.file(next, data)
	return true
}

// circle lists the files from the one that is included again to itself.
func circle(by, again *reading) string {
	names := []string{again.path}
	for r := by; r != nil; r = r.from {
		names = append(names, r.path)
		if r.id == again.id {
			break
		}
	}
	slices.Reverse(names)
	return strings.Join(names, " -> ")
}

// included lists the files that an include of a file stands for, sorted.
func included(from, text string) (paths []string, isPattern bool, err error) {
	if !filepath.IsAbs(text) {
		text = filepath.Join(filepath.Dir(from), text)
	}
	if !strings.ContainsAny(text, "*?[") {
		return []string{text}, false, nil
	}
	paths, err = filepath.Glob(text)
	slices.Sort(paths)
	return paths, true, err
}

// readRegular reads a file, unless it is something that has no end.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case info.Size() > maxFileSize:
		return nil, fmt.Errorf("it has %d bytes, the limit is %d", info.Size(), maxFileSize)
	}
	return os.ReadFile(path)
}

// Fingerprint is a hash of what the files hold, and those that they include,
// however broken they are. It changes when one of them does, when one appears
// that a pattern of include finds, and when one goes.
func Fingerprint(paths ...string) uint64 {
	f := &fingerprinter{sum: fnv.New64a(), seen: map[string]bool{}}
	for _, p := range paths {
		f.file(p, 0)
	}
	return f.sum.Sum64()
}

type fingerprinter struct {
	sum  hash.Hash64
	seen map[string]bool
}

func (f *fingerprinter) file(path string, depth int) {
	id := fileID(path)
	if f.seen[id] || len(f.seen) >= maxFiles || depth > maxIncludeDepth {
		return
	}
	f.seen[id] = true
	data, err := readRegular(path)
	fmt.Fprintf(f.sum, "%s\x00%d\x00%v\x00", path, len(data), err)
	_, _ = f.sum.Write(data) // never fails, by its documentation
	if !strings.Contains(string(data), "include") {
		return // a file of megabytes is not parsed twice a second for nothing
	}
	d := newDecoder(path, &Findings{}, nil, os.LookupEnv)
	doc := d.document(data)
	if doc == nil || resolve(doc).Kind != yaml.MappingNode {
		return
	}
	content := resolve(doc).Content
	for i := 0; i+1 < len(content); i += 2 {
		if resolve(content[i]).Value != "include" {
			continue
		}
		items, _ := d.list(content[i+1], "include")
		for _, item := range items {
			if text, ok := d.text(item, "include"); ok && text != "" {
				paths, _, _ := included(path, text)
				for _, p := range paths {
					f.file(p, depth+1)
				}
			}
		}
	}
}
