package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The compiler of TypeScript, from npm: every node runs what it makes, and it
// checks the types, which a node that runs TypeScript by itself does not.
const (
	typescriptVersion = "5.9.3"
	nodeTypesVersion  = "22.20.5"
)

// FindPython says where Python 3 is. The error wraps ErrNotInstalled if there
// is none.
func FindPython(ctx context.Context) (string, error) { return findScript(ctx, "python3") }

// FindNode says where Node is.
func FindNode(ctx context.Context) (string, error) { return findScript(ctx, "node") }

// findScript looks for an interpreter that starts: a shim of a version manager
// may be all that is there.
func findScript(ctx context.Context, name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("look for %s on PATH: %w", name, ErrNotInstalled)
	}
	if _, err := run(ctx, nil, "/", path, "--version"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	return path, nil
}

// FindTypeScript says where the compiler is, and has npm fetch it if it must.
func FindTypeScript(ctx context.Context) (tsc string, err error) {
	if _, err := FindNode(ctx); err != nil {
		return "", err
	}
	dir, err := cached(ctx, "typescript-"+typescriptVersion, fetchTypeScript)
	if err != nil {
		return "", fmt.Errorf("typescript %s: %w: %w", typescriptVersion, ErrNotInstalled, err)
	}
	return filepath.Join(dir, "node_modules", "typescript", "bin", "tsc"), nil
}

func fetchTypeScript(ctx context.Context, dir string) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return errors.New("look for npm on PATH: there is none")
	}
	_, err = run(ctx, nil, dir, npm, "install", "--prefix", dir, "--no-audit", "--no-fund", "--ignore-scripts", "--silent",
		"typescript@"+typescriptVersion, "@types/node@"+nodeTypesVersion)
	return err
}

// CompileTypeScript checks the types of one .mts file, strictly, and puts the
// JavaScript of it into dir. It returns the path of that.
func CompileTypeScript(ctx context.Context, source, dir string) (string, error) {
	node, err := FindNode(ctx)
	if err != nil {
		return "", err
	}
	tsc, err := FindTypeScript(ctx)
	if err != nil {
		return "", err
	}
	// Beside the source there are no node_modules, so that it is told where the
	// types of Node are.
	types := filepath.Join(filepath.Dir(tsc), "..", "..", "@types")
	if _, err := run(ctx, nil, dir, node, tsc, "--strict", "--erasableSyntaxOnly", "--verbatimModuleSyntax", "--target", "es2022",
		"--module", "nodenext", "--typeRoots", types, "--types", "node", "--outDir", dir, source); err != nil {
		return "", fmt.Errorf("compile %s: %w", source, err)
	}
	out := filepath.Join(dir, strings.TrimSuffix(filepath.Base(source), ".mts")+".mjs")
	if _, err := os.Stat(out); err != nil {
		return "", fmt.Errorf("compile %s: %w", source, err)
	}
	return out, nil
}
