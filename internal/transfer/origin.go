package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path"
	"strings"

	"firn/internal/cache"
)

// An origin is a binary cache to import from. It is safe for concurrent use.
type origin interface {
	// open opens a file by what a narinfo has for its URL, relative to the cache. ErrNotFound if there is none.
	// encoding is its Content-Encoding. Reading continues after failures that pass. The caller closes it.
	open(ctx context.Context, name string) (body io.ReadCloser, encoding string, err error)
	// list iterates over the names in a directory of the cache, "." for the cache itself. errNoListing if it has none.
	list(ctx context.Context, dir string) iter.Seq2[string, error]
	close()
}

// errNoListing is why an origin cannot be imported as a whole.
var errNoListing = errors.New("a cache reached over HTTP cannot list what it has; name the store paths to import with all that they refer to")

// openOrigin opens the cache at a URL (http, https or file), or in a directory.
func openOrigin(from string, opts *ImportOptions) (origin, error) {
	u, err := url.Parse(from)
	switch {
	case err == nil && (u.Scheme == "http" || u.Scheme == "https"):
		return newHTTPOrigin(u, opts)
	case err == nil && u.Scheme == "file":
		if u.Host != "" && u.Host != "localhost" {
			return nil, fmt.Errorf("%w: a file:// URL has no host: write file:///path", cache.ErrInvalid)
		}
		return openDirOrigin(u.Path)
	case err == nil && u.Scheme == "s3":
		return nil, fmt.Errorf("%w: buckets are not read; copy this one to a directory, as aws s3 sync does, and import that; or name its https:// address, and store paths", cache.ErrInvalid)
	case strings.Contains(from, "://"):
		scheme, _, _ := strings.Cut(from, "://")
		return nil, fmt.Errorf("%w: %s:// is no binary cache that can be read; want http://, https://, file:// or a directory", cache.ErrInvalid, scheme)
	}
	return openDirOrigin(from)
}

// A dirOrigin is a cache in a directory. Links that lead out of it are not followed.
type dirOrigin struct{ root *os.Root }

func openDirOrigin(dir string) (origin, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return dirOrigin{root}, nil
}

func (d dirOrigin) open(_ context.Context, name string) (io.ReadCloser, string, error) {
	u, err := url.Parse(name)
	if err != nil || u.Scheme != "" || u.Host != "" || u.RawQuery != "" {
		return nil, "", fmt.Errorf("%w: %q leads out of the cache", cache.ErrInvalid, name)
	}
	file := path.Clean(u.Path)
	info, err := d.root.Stat(file) // before it is opened: that would wait for the other end of a pipe
	if err == nil && !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%w: %s is no file", cache.ErrInvalid, name)
	}
	var f *os.File
	if err == nil {
		f, err = d.root.Open(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", fmt.Errorf("%w: %s", cache.ErrNotFound, path.Join(d.root.Name(), file))
	}
	return f, "", err
}

func (d dirOrigin) list(ctx context.Context, dir string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		f, err := d.root.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield("", err)
			return
		}
		defer f.Close()
		for {
			if err := ctx.Err(); err != nil {
				yield("", err)
				return
			}
			names, err := f.Readdirnames(1024)
			for _, name := range names {
				if !yield(name, nil) {
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield("", err)
				return
			}
		}
	}
}

func (d dirOrigin) close() { d.root.Close() }
