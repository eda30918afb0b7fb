package warmer

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// A snapshot is what is hot, for a Redis that is new: names and no values, which
// only the database can vouch for. It is a file of lines of JSON: a header, a
// line for each name, the hottest first, and a last line with their number and
// the checksum of all lines before it.
const (
	snapshotKind    = "lethe hot keys"
	snapshotVersion = 1
	snapshotLineMax = 1 << 20
	snapshotMax     = 10_000_000 // names
)

// ErrSnapshot says that a file is no snapshot, is damaged, or is of another cache.
var ErrSnapshot = errors.New("snapshot can not be used")

// SnapshotHeader is the first line.
type SnapshotHeader struct {
	Kind      string    `json:"kind"`
	Version   int       `json:"version"`
	Namespace string    `json:"namespace"`
	Layout    int       `json:"layout"`
	Made      time.Time `json:"made"`
}

// SnapshotName is one name of a snapshot, without the namespace.
type SnapshotName struct {
	Class string `json:"class"`
	Name  string `json:"name"`
	// TTL is what was left of the entry's life, in milliseconds; 0 is for ever,
	// or that it was not there.
	TTL int64 `json:"ttl_ms,omitempty"`
}

type snapshotEnd struct {
	Names  int    `json:"names"`
	SHA256 string `json:"sha256"`
}

// SaveSnapshot writes the file, whole or not at all: under another name that is
// moved to its own at the end.
func SaveSnapshot(path, namespace string, names []SnapshotName) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("save snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("save snapshot: %w", err)
		}
	}()
	sum := sha256.New()
	buffered := bufio.NewWriterSize(f, 1<<16)
	lines := json.NewEncoder(io.MultiWriter(buffered, sum))
	header := SnapshotHeader{Kind: snapshotKind, Version: snapshotVersion, Namespace: namespace, Layout: coherence.LayoutVersion, Made: time.Now().UTC().Truncate(time.Second)}
	if err := lines.Encode(header); err != nil {
		return err
	}
	for i := range names {
		if err := lines.Encode(&names[i]); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(buffered).Encode(snapshotEnd{Names: len(names), SHA256: hex.EncodeToString(sum.Sum(nil))}); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ReadSnapshot reads a file and believes it only when all of it is there and
// it is of this namespace.
func ReadSnapshot(path, namespace string) ([]SnapshotName, SnapshotHeader, error) {
	var header SnapshotHeader
	f, err := os.Open(path)
	if err != nil {
		return nil, header, fmt.Errorf("read snapshot: %w", err)
	}
	defer f.Close()
	bad := func(format string, args ...any) ([]SnapshotName, SnapshotHeader, error) {
		return nil, header, fmt.Errorf("read snapshot %s: %w: %s", path, ErrSnapshot, fmt.Sprintf(format, args...))
	}
	scanner := bufio.NewScanner(f)
	scanner.Buffer(make([]byte, 0, 1<<16), snapshotLineMax)
	sum := sha256.New()
	var names []SnapshotName
	var last []byte // not known to be the end until there is no more
	for n := 0; scanner.Scan(); n++ {
		if last != nil {
			_, _ = sum.Write(append(last, '\n'))
			if n > 1 {
				var name SnapshotName
				if err := json.Unmarshal(last, &name); err != nil || name.Class == "" || name.Name == "" {
					return bad("line %d is no name", n)
				}
				if len(names) == snapshotMax {
					return bad("it has more than %d names", snapshotMax)
				}
				names = append(names, name)
			}
		}
		last = slices.Clone(scanner.Bytes())
		if n > 0 {
			continue
		}
		if err := json.Unmarshal(last, &header); err != nil || header.Kind != snapshotKind {
			return bad("it does not begin as one")
		}
		if header.Version != snapshotVersion {
			return bad("it is of version %d, this program reads %d", header.Version, snapshotVersion)
		}
		if header.Namespace != namespace {
			return bad("it is of namespace %q, the rules are of %q", header.Namespace, namespace)
		}
	}
	if err := scanner.Err(); err != nil {
		return bad("%v", err)
	}
	var end snapshotEnd
	if err := json.Unmarshal(last, &end); err != nil || end.SHA256 == "" {
		return bad("its end is missing")
	}
	if end.Names != len(names) || end.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
		return bad("it is damaged: the checksum is another")
	}
	return names, header, nil
}

// SnapshotResult says what became of the names of one class.
type SnapshotResult struct {
	Class string
	Names int
	// Unknown is why none of them could be filled; "" if they were looked at.
	Unknown string
	Result
}

// LoadSnapshot fills the entries of a snapshot that are absent, the hottest
// first, from the database. progress is told after each batch how many names are
// dealt with; nil is not. The results are by class, in the order of the file.
func (w *Warmer) LoadSnapshot(ctx context.Context, names []SnapshotName, progress func(done int)) ([]SnapshotResult, error) {
	set := w.cfg.Rules().Set()
	var results []SnapshotResult
	at := map[string]int{}
	of := func(class string) *SnapshotResult {
		i, ok := at[class]
		if !ok {
			i = len(results)
			at[class] = i
			r := SnapshotResult{Class: class}
			switch c := set.Class(class); {
			case c == nil:
				r.Unknown = "the rules have no such entry"
			case !w.cfg.Loader.Loads(c):
				r.Unknown = ErrNoLoader.Error()
			}
			results = append(results, r)
		}
		return &results[i]
	}
	size := w.cfg.Loader.cfg.Batch * w.cfg.Loader.cfg.Concurrency
	done, left := 0, warmPatience
	for chunk := range slices.Chunk(names, size) {
		byClass := map[string][]string{}
		for _, n := range chunk {
			r := of(n.Class)
			r.Names++
			if r.Unknown != "" {
				continue
			}
			full := set.FullName(n.Name)
			if !fillable(set.Class(n.Class), full) {
				r.refuse("name", 1) // the key's form is another now, or the file is nobody's
				continue
			}
			byClass[n.Class] = append(byClass[n.Class], full)
		}
		for class, list := range byClass {
			got, err := w.fillSoon(ctx, class, list, &left)
			of(class).Result.add(got)
			if err != nil {
				return results, err
			}
		}
		if done += len(chunk); progress != nil {
			progress(done)
		}
	}
	return results, nil
}
