package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled is wrapped by the errors of Start functions when the server's
// program is not on this machine and cannot be fetched.
var ErrNotInstalled = errors.New("not installed")

// Debian names the Postgres of the system in PostgresConfig.Version.
const Debian = "debian"

// installation is where the programs of one Postgres are.
type installation struct {
	bin     string
	version string // "15.13"
	origin  string // "installed" or "embedded"
}

func (i installation) tool(name string) string { return filepath.Join(i.bin, name) }

func (i installation) String() string {
	return fmt.Sprintf("Postgres %s (%s, %s)", i.version, i.origin, i.bin)
}

func findPostgres(ctx context.Context, version string) (installation, error) {
	switch version {
	case Debian:
		return installedPostgres(ctx)
	case "":
		install, err := installedPostgres(ctx)
		if errors.Is(err, ErrNotInstalled) {
			return embeddedPostgres(ctx, newestEmbedded)
		}
		return install, err
	}
	return embeddedPostgres(ctx, version)
}

// installedPostgres looks where packages put it, newest version first, and
// then on PATH. Debian keeps initdb and postgres off the PATH.
func installedPostgres(ctx context.Context) (installation, error) {
	var dirs []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
		found, _ := filepath.Glob(pattern)
		dirs = append(dirs, found...)
	}
	slices.SortFunc(dirs, func(a, b string) int { return majorIn(b) - majorIn(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	for _, dir := range dirs {
		if !executable(filepath.Join(dir, "initdb")) || !executable(filepath.Join(dir, "postgres")) {
			continue
		}
		version, err := postgresVersion(ctx, dir)
		if err != nil {
			return installation{}, err
		}
		return installation{bin: dir, version: version, origin: "installed"}, nil
	}
	return installation{}, fmt.Errorf("look for initdb and postgres in the usual places and on PATH: %w", ErrNotInstalled)
}

// postgresVersion asks the program: "postgres (PostgreSQL) 15.13 (Debian ...)".
func postgresVersion(ctx context.Context, bin string) (string, error) {
	out, err := run(ctx, nil, "/", filepath.Join(bin, "postgres"), "--version")
	if err != nil {
		return "", err
	}
	f := strings.Fields(out)
	if len(f) < 3 {
		return "", fmt.Errorf("read the version of postgres in %s: got %q", bin, out)
	}
	return f[2], nil
}

// majorIn is the first number in a path, 0 if there is none.
func majorIn(path string) int {
	digits := strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' })
	if len(digits) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(digits[0])
	return n
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
