package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
)

// Install installs Debian packages, as root and with apt-get, and starts no
// service of theirs. The error says why not, in a few words.
func Install(ctx context.Context, packages ...string) error {
	return install(ctx, packages, policyFile)
}

// install runs apt-get. The error says why not, in a few words.
func install(ctx context.Context, packages []string, policy string) error {
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return errors.New("no apt-get on this machine")
	}
	if os.Geteuid() != 0 {
		return errors.New("that takes root")
	}
	allow, err := forbidServices(policy)
	if err != nil {
		return err
	}
	defer allow()
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-q", "-y", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], err, lastLine(out))
		}
	}
	return nil
}

func lastLine(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(out[bytes.LastIndexByte(out, '\n')+1:])
}

// policyFile is what Debian's packages ask before they start their service.
const policyFile = "/usr/sbin/policy-rc.d"

// forbidServices keeps the packages from starting a Postgres and a Redis that
// nobody asked for, until allow is called. A policy that the machine's owner
// has set stays as it is.
func forbidServices(policy string) (allow func(), err error) {
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	if err = errors.Join(err, f.Close(), os.Chmod(policy, 0o755)); err != nil {
		return nil, errors.Join(err, os.Remove(policy))
	}
	return func() { _ = os.Remove(policy) }, nil
}
