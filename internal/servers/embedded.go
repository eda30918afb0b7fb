package servers

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/xi2/xz"
)

// newestEmbedded is what "" stands for where no Postgres is installed.
const newestEmbedded = "18"

// embeddedVersions are the exact versions behind "14" to "18". They are those
// of the zonky binaries on Maven Central: postgres, initdb and pg_ctl with
// pgoutput and the usual extensions, but no client programs.
var embeddedVersions = map[string]string{
	"14": "14.20.0",
	"15": "15.15.0",
	"16": "16.10.0",
	"17": "17.6.0",
	"18": "18.4.0",
}

// embeddedDigests are the SHA-256 of the archives that were tried. What is not
// listed is checked against the digest that the repository publishes.
var embeddedDigests = map[string]string{
	"linux-amd64 14.20.0":    "a0f7b5095c5647ec5058b0cdb58544d02f98ba8cec6f74614c80a5acc8399b29",
	"linux-amd64 15.15.0":    "7c73da91870b0615b37a8ceb84871bd42f28c3600f87a97ca9747f4a0b8d2dbb",
	"linux-arm64v8 15.15.0":  "623ee4c35cfdccd585d4473ff9b51942d465a7f8280687e6b960f56066f58909",
	"darwin-arm64v8 15.15.0": "c9611126d7b87e86423ec147b65da41a12c4e247097264496fc4af6fba8a828b",
	"linux-amd64 16.10.0":    "17a8ded28bde97fe66247387806af30ee26190fc96503c47c3eaa4fcbdcff8b6",
	"linux-arm64v8 16.10.0":  "96e6e62674dfbb2fb16081a05525c0454290e163a8d7ae225512cf60ee908371",
	"darwin-arm64v8 16.10.0": "8b1933ae6912399902ac901f2633f22c5e92ca81585297ba0e2b835e25208459",
	"linux-amd64 17.6.0":     "23da5a044b4fb7a5a081a45008c95749c873305328d73f86aefd56922ce1d29d",
	"linux-arm64v8 17.6.0":   "84427ea54a5238247924ef3b0f940e7d027e58760f19d7325242e50d22fa014a",
	"darwin-arm64v8 17.6.0":  "e87ee36767dee4f00f829d7a52e4a216e2fdebe5934c5683730940aabe570721",
	"linux-amd64 18.4.0":     "401d4e69baba9072d3772607710df0d47b39a7632c6b01b2a5f5d85a9514e212",
	"linux-arm64v8 18.4.0":   "a9ec284923b9a7d2db41509bfb88c3d0eeb9f4aa5e2b29ea0aac5e8dbaf4c335",
	"darwin-arm64v8 18.4.0":  "ab698c4486a795d2aa8a158b3a41e1201a77e7ff72a6255094cd5900080853c2",
}

const mavenCentral = "https://repo1.maven.org/maven2"

// EmbeddedVersions are the values of PostgresConfig.Version that need nothing
// installed, oldest first.
func EmbeddedVersions() []string { return slices.Sorted(maps.Keys(embeddedVersions)) }

// embeddedPostgres returns the binaries of a major version from the cache, into
// which they are downloaded the first time.
func embeddedPostgres(ctx context.Context, major string) (installation, error) {
	version, ok := embeddedVersions[major]
	if !ok {
		return installation{}, fmt.Errorf("no embedded postgres of this version; there are %s and %q", strings.Join(EmbeddedVersions(), ", "), Debian)
	}
	platform := platform()
	dir, err := cached(ctx, "postgres-"+version+"-"+platform, func(ctx context.Context, dir string) error {
		jar, err := fetchEmbedded(ctx, mavenCentral, platform, version)
		if err != nil {
			return err
		}
		return unpackJar(jar, dir)
	})
	if err != nil {
		// Wrapped as not installed: offline, the tests that need it are left out.
		return installation{}, fmt.Errorf("embedded postgres %s: %w: %w", version, ErrNotInstalled, err)
	}
	return installation{bin: filepath.Join(dir, "bin"), version: strings.TrimSuffix(version, ".0"), origin: "embedded"}, nil
}

// platform is the repository's name for this machine.
func platform() string {
	arch := runtime.GOARCH
	if arch == "arm64" {
		arch += "v8"
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil {
		arch += "-alpine"
	}
	return runtime.GOOS + "-" + arch
}

// fetchEmbedded downloads an archive and checks it. A wrong digest is an error
// whoever is to blame: nothing unchecked is ever run.
func fetchEmbedded(ctx context.Context, repository, platform, version string) ([]byte, error) {
	name := "embedded-postgres-binaries-" + platform
	url := repository + "/io/zonky/test/postgres/" + name + "/" + version + "/" + name + "-" + version + ".jar"
	jar, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(jar)
	got, want := hex.EncodeToString(sum[:]), embeddedDigests[platform+" "+version]
	if want == "" {
		published, err := get(ctx, url+".sha256")
		if err != nil { // some archives have only the older digest
			old := sha1.Sum(jar)
			got = hex.EncodeToString(old[:])
			if published, err = get(ctx, url+".sha1"); err != nil {
				return nil, fmt.Errorf("find a digest of %s: %w", url, err)
			}
		}
		want = strings.TrimSpace(string(published))
	}
	if got != want {
		return nil, fmt.Errorf("check %s: digest is %s, want %s", url, got, want)
	}
	return jar, nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	// A transport of its own, closed at the end: the shared one keeps a
	// connection and its goroutines for minutes.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s", url, res.Status)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	return b, nil
}

// unpackJar unpacks the one .txz inside the archive.
func unpackJar(jar []byte, dir string) error {
	z, err := zip.NewReader(bytes.NewReader(jar), int64(len(jar)))
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, ".txz") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return fmt.Errorf("open %s: %w", f.Name, err)
		}
		defer r.Close()
		x, err := xz.NewReader(r, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", f.Name, err)
		}
		if err := unpackTar(x, dir); err != nil {
			return fmt.Errorf("unpack %s: %w", f.Name, err)
		}
		return nil
	}
	return errors.New("open archive: no .txz in it")
}

// unpackTar writes files, directories and symbolic links below dir and, by
// os.Root, nowhere else.
func unpackTar(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = unpackFile(root, name, os.FileMode(h.Mode), t)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
