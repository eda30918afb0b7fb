package servers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// cacheDir is where downloads are unpacked once and used by every process: the
// user's cache directory, for root /var/cache, because root's own is often
// closed to the unprivileged user that Postgres runs as.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	switch {
	case os.Geteuid() == 0:
		dir = "/var/cache"
	case err != nil:
		dir = filepath.Join(os.TempDir(), "cache-"+strconv.Itoa(os.Getuid()))
	}
	dir = filepath.Join(dir, "lethe")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache for downloads: %w", err)
	}
	return dir, nil
}

// cached returns the directory name in the cache. If it is not there, fill
// makes it: fill gets an empty directory, which takes its name only when fill
// has succeeded, so that what is in the cache is complete. Of several processes
// that want the same one fills and the others wait.
func cached(ctx context.Context, name string, fill func(ctx context.Context, dir string) error) (string, error) {
	base, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, name)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return "", fmt.Errorf("lock %s: %w", dir, err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil // somebody else filled it meanwhile
	}
	tmp, err := os.MkdirTemp(base, name+".partial-")
	if err != nil {
		return "", fmt.Errorf("fill %s: %w", dir, err)
	}
	defer os.RemoveAll(tmp)
	err = fill(ctx, tmp)
	if err == nil {
		err = errors.Join(everybodyReads(tmp), os.Rename(tmp, dir))
	}
	if err != nil {
		return "", fmt.Errorf("fill %s: %w", dir, err)
	}
	return dir, nil
}

// everybodyReads opens a tree to other users, whatever the umask was.
func everybodyReads(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 { // a program or a directory
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}

// lockFile takes an exclusive lock that ends with this process at the latest.
// It polls, because a blocking flock cannot be given up when ctx ends.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
