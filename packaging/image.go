package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

const (
	// imageUser is the user that firn runs as in a container. No system has it: it has no rights, and is a number,
	// so that Kubernetes can tell that it is not root.
	imageUser = 65532
	// imageName is the name under which Docker and Podman load the image.
	imageName, imageTag = "localhost/firn", "latest"
)

// writeImage writes the image for containers with all architectures.
// It is an archive of an OCI layout, with Docker's older manifest beside it, for Docker before 25.
func (r *release) writeImage(dist string, arches []string) error {
	base, err := r.layer(r.baseFiles())
	if err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var first v1.Image
	for _, arch := range arches {
		image, err := r.image(base, arch)
		if err != nil {
			return err
		}
		if first == nil {
			first = image
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	index = mutate.Annotations(index, r.labels()).(v1.ImageIndex)

	// The layout has one entry, the index, so that no reader has to choose.
	path, err := layout.Write(r.path("layout"), empty.Index)
	if err != nil {
		return err
	}
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          imageName + ":" + imageTag,
		"org.opencontainers.image.ref.name": imageTag,
	}))
	if err != nil {
		return err
	}
	written, err := path.ImageIndex()
	if err != nil {
		return err
	}
	if err := validate.Index(written); err != nil {
		return fmt.Errorf("check the layout that was written: %w", err)
	}
	manifest, err := dockerManifest(first)
	if err != nil {
		return err
	}
	if err := path.WriteFile("manifest.json", manifest, 0o644); err != nil {
		return err
	}
	return publish(filepath.Join(dist, "firn-oci.tar"), func(f *os.File) error {
		return r.writeTree(f, r.path("layout"))
	})
}

// image returns the image for an architecture: two layers, of which others have the first too.
func (r *release) image(base v1.Layer, arch string) (v1.Image, error) {
	files := []imageFile{{name: "usr/", mode: 0o755}, {name: "usr/bin/", mode: 0o755}, {name: "usr/share/", mode: 0o755},
		{name: "usr/share/doc/", mode: 0o755}, {name: "usr/share/doc/firn/", mode: 0o755}}
	for _, f := range []struct {
		name, path string
		mode       int64
	}{
		{"usr/bin/firn", r.program(arch), 0o755},
		{"usr/share/doc/firn/LICENSE", filepath.Join(repository, "LICENSE"), 0o644},
		{"usr/share/doc/firn/licenses.gz", r.path("licenses.gz"), 0o644},
	} {
		text, err := os.ReadFile(f.path)
		if err != nil {
			return nil, err
		}
		files = append(files, imageFile{name: f.name, mode: f.mode, text: text})
	}
	program, err := r.layer(files)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.date}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Created:      created,
		OS:           "linux",
		Architecture: arch,
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:         fmt.Sprintf("%d:%d", imageUser, imageUser),
			Entrypoint:   []string{"/usr/bin/firn"},
			Cmd:          []string{"serve"},
			Env:          []string{"PATH=/usr/bin", "FIRN_STATE=" + stateDir},
			ExposedPorts: map[string]struct{}{"5000/tcp": {}},
			Volumes:      map[string]struct{}{stateDir: {}},
			WorkingDir:   "/",
			Labels:       r.labels(),
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image,
		mutate.Addendum{Layer: base, History: v1.History{Created: created, CreatedBy: "packaging", Comment: "certificates, user and directories"}},
		mutate.Addendum{Layer: program, History: v1.History{Created: created, CreatedBy: "packaging", Comment: "firn " + r.version}})
}

// labels say what the image is, in the words of the OCI.
func (r *release) labels() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "firn",
		"org.opencontainers.image.description": "Nix binary cache",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     r.version,
		"org.opencontainers.image.revision":    r.commit,
		"org.opencontainers.image.created":     r.date.Format("2006-01-02T15:04:05Z"),
	}
}

// An imageFile is a file in the image; a directory has a name that ends with a slash.
type imageFile struct {
	name string
	mode int64
	user int
	text []byte
}

// baseFiles are what firn needs in a container beside itself. There is nothing else: no shell, no C library.
func (r *release) baseFiles() []imageFile {
	user := fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nfirn:x:%d:%d:firn:%s:/sbin/nologin\n", imageUser, imageUser, stateDir)
	group := fmt.Appendf(nil, "root:x:0:\nfirn:x:%d:\n", imageUser)
	return []imageFile{
		{name: "etc/", mode: 0o755}, {name: "etc/firn/", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, text: user},
		{name: "etc/group", mode: 0o644, text: group},
		{name: "etc/ssl/", mode: 0o755}, {name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, text: authorities()},
		{name: "tmp/", mode: 0o1777},
		{name: "var/", mode: 0o755}, {name: "var/lib/", mode: 0o755},
		{name: "var/lib/firn/", mode: 0o700, user: imageUser},
	}
}

// authorities returns the certificates of the authorities that Mozilla trusts without conditions, which a file cannot tell.
// They come from a module and not from this machine, so that every machine makes the same image.
func authorities() []byte {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return b.Bytes()
}

// layer returns a layer with files, all of the time of the release.
func (r *release) layer(files []imageFile) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.user, Gid: f.user, Size: int64(len(f.text)), ModTime: r.date}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// dockerManifest returns the manifest.json of an image in an archive that Docker saved, with the blobs of an OCI layout.
func dockerManifest(image v1.Image) ([]byte, error) {
	m, err := image.Manifest()
	if err != nil {
		return nil, err
	}
	blob := func(d v1.Descriptor) string { return "blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex }
	entry := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: blob(m.Config), RepoTags: []string{imageName + ":" + imageTag}}
	for _, l := range m.Layers {
		entry.Layers = append(entry.Layers, blob(l))
	}
	return json.Marshal([]any{entry})
}

// writeTree writes the files below a directory as an archive, in the order of their names.
func (r *release) writeTree(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o644, Size: int64(len(text)), ModTime: r.date}); err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	if err != nil {
		return err
	}
	return w.Close()
}
