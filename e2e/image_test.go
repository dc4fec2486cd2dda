package e2e

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The parts of the image, in the words of the OCI's specification.
type (
	descriptor struct {
		MediaType   string
		Digest      string
		Size        int64
		Platform    struct{ OS, Architecture string }
		Annotations map[string]string
	}
	indexManifest struct {
		SchemaVersion int
		Manifests     []descriptor
	}
	imageManifest struct {
		SchemaVersion int
		MediaType     string
		Config        descriptor
		Layers        []descriptor
	}
	imageConfig struct {
		OS, Architecture string
		RootFS           struct {
			Type    string
			DiffIDs []string `json:"diff_ids"`
		}
		Config struct {
			User            string
			Entrypoint, Cmd []string
			Env             []string
			ExposedPorts    map[string]struct{}
			Volumes         map[string]struct{}
			Labels          map[string]string
		}
	}
)

// The image is what the OCI's specification says, for both architectures, and from its file system alone
// firn serves and takes paths, as the user and with the command that a container would have.
func TestImage(t *testing.T) {
	t.Parallel()
	dist := madePackages(t)
	dir := filepath.Join(tempDir(t), "layout")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := imageLayout{t: t, dir: dir}
	l.unpack(filepath.Join(dist, "firn-oci.tar"))

	var outer, index indexManifest
	l.read("index.json", &outer)
	if len(outer.Manifests) != 1 || outer.Manifests[0].MediaType != "application/vnd.oci.image.index.v1+json" ||
		outer.Manifests[0].Annotations["io.containerd.image.name"] != "localhost/firn:latest" {
		t.Fatalf("the layout has %+v, want one index", outer)
	}
	l.blob(outer.Manifests[0], &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("the index has %+v, want two images", index)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		d := index.Manifests[i]
		if d.Platform.OS != "linux" || d.Platform.Architecture != arch || d.MediaType != "application/vnd.oci.image.manifest.v1+json" {
			t.Errorf("image %d is %+v, want one for %s", i, d, arch)
		}
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			l := imageLayout{t: t, dir: dir}
			config := l.image(d, arch)
			root := l.bundle(d, arch)
			wantProgram(t, root, map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch], arch)
			wantFileSystem(t, root)
			if arch == runtime.GOARCH {
				testContainer(t, root, config)
			}
		})
	}
	// For Docker before 25, which reads no layout.
	var old []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	l.read("manifest.json", &old)
	var first imageManifest
	l.blob(index.Manifests[0], &first)
	if len(old) != 1 || !slices.Equal(old[0].RepoTags, []string{"localhost/firn:latest"}) ||
		old[0].Config != blobPath(first.Config) || !slices.Equal(old[0].Layers, []string{blobPath(first.Layers[0]), blobPath(first.Layers[1])}) {
		t.Errorf("manifest.json has %+v, want %+v", old, first)
	}
}

// An imageLayout is a directory with an OCI layout.
type imageLayout struct {
	t   *testing.T
	dir string
}

// unpack unpacks an archive of a layout, which has files only.
func (l imageLayout) unpack(path string) {
	l.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil || h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) {
			l.t.Fatalf("read %s: %+v, %v", path, h, err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			l.t.Fatal(err)
		}
		name := filepath.Join(l.dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			l.t.Fatal(err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
}

// read reads a JSON file of the layout.
func (l imageLayout) read(name string, v any) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, name))
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		l.t.Fatalf("read %s: %v", name, err)
	}
}

func blobPath(d descriptor) string { return "blobs/" + strings.Replace(d.Digest, ":", "/", 1) }

// blob reads a blob, which is what its descriptor says; v is nil for one that is no JSON.
func (l imageLayout) blob(d descriptor, v any) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, blobPath(d)))
	if err != nil {
		l.t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	if int64(len(text)) != d.Size || "sha256:"+hex.EncodeToString(sum[:]) != d.Digest {
		l.t.Fatalf("%d bytes of SHA-256 %x, want %+v", len(text), sum, d)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(text, v); err != nil {
		l.t.Fatalf("read %s: %v", d.Digest, err)
	}
}

// image checks all of an image but its files, and returns its configuration.
func (l imageLayout) image(d descriptor, arch string) imageConfig {
	l.t.Helper()
	var m imageManifest
	l.blob(d, &m)
	if m.MediaType != d.MediaType || m.Config.MediaType != "application/vnd.oci.image.config.v1+json" || len(m.Layers) != 2 {
		l.t.Fatalf("the manifest is %+v", m)
	}
	for _, layer := range m.Layers {
		if layer.MediaType != "application/vnd.oci.image.layer.v1.tar+gzip" {
			l.t.Errorf("a layer is %s", layer.MediaType)
		}
		l.blob(layer, nil)
	}
	var c imageConfig
	l.blob(m.Config, &c)
	if c.OS != "linux" || c.Architecture != arch || c.RootFS.Type != "layers" || len(c.RootFS.DiffIDs) != 2 {
		l.t.Errorf("the configuration is %+v", c)
	}
	for _, label := range []string{"title", "description", "version", "revision", "created", "licenses"} {
		if c.Config.Labels["org.opencontainers.image."+label] == "" {
			l.t.Errorf("there is no label %s: %v", label, c.Config.Labels)
		}
	}
	_, volume := c.Config.Volumes["/var/lib/firn"]
	_, port := c.Config.ExposedPorts["5000/tcp"]
	if !volume || !port || c.Config.User != "65532:65532" || !slices.Equal(append(c.Config.Entrypoint, c.Config.Cmd...), []string{"/usr/bin/firn", "serve"}) {
		l.t.Errorf("a container would be %+v", c.Config)
	}
	return c
}

// bundle has umoci unpack an image, and returns its file system. umoci checks what the layers say of themselves.
func (l imageLayout) bundle(d descriptor, arch string) string {
	l.t.Helper()
	dir := filepath.Join(tempDir(l.t), "layout")
	copyTree(l.t, l.dir, dir)
	// umoci chooses no architecture: it gets a layout with one image.
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": arch}
	text, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{
		"mediaType": d.MediaType, "digest": d.Digest, "size": d.Size, "annotations": d.Annotations,
	}}})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), text, 0o644); err != nil {
		l.t.Fatal(err)
	}
	bundle := filepath.Join(filepath.Dir(dir), "bundle")
	if out, err := exec.CommandContext(l.t.Context(), "umoci", "unpack", "--image", dir+":"+arch, bundle).CombinedOutput(); err != nil {
		l.t.Fatalf("umoci: %v\n%s", err, out)
	}
	return filepath.Join(bundle, "rootfs")
}

// wantFileSystem checks what is below the root of an image.
func wantFileSystem(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]struct {
		mode os.FileMode
		user uint32
	}{
		"usr/bin/firn":                   {0o755, 0},
		"usr/share/doc/firn/licenses.gz": {0o644, 0},
		"etc/passwd":                     {0o644, 0},
		"tmp":                            {os.ModeDir | os.ModeSticky | 0o777, 0},
		"var/lib/firn":                   {os.ModeDir | 0o700, 65532},
	} {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if user := info.Sys().(*syscall.Stat_t).Uid; info.Mode() != want.mode || user != want.user {
			t.Errorf("%s has mode %v and user %d, want %+v", name, info.Mode(), user, want)
		}
	}
	authorities, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(authorities), "BEGIN CERTIFICATE"); n < 100 || !x509.NewCertPool().AppendCertsFromPEM(authorities) {
		t.Errorf("there are certificates of %d authorities", n)
	}
}

// testContainer runs firn in a file system as a container would: its user, command and variables, and nothing else around it.
func testContainer(t *testing.T, root string, config imageConfig) {
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		line := append([]string{"--userspec=" + config.Config.User, "--groups=", root}, config.Config.Entrypoint...)
		cmd := exec.CommandContext(ctx, "chroot", append(line, args...)...)
		cmd.Env = config.Config.Env
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = killDelay
		return cmd
	}
	s := awaitServer(t, func(ctx context.Context) *exec.Cmd {
		return command(ctx, append(slices.Clone(config.Config.Cmd), "--listen", "127.0.0.1:0")...)
	})
	out, err := command(t.Context(), "token", "create", "--push", "main", "ci").CombinedOutput()
	token := tokenText.FindString(string(out))
	if err != nil || token == "" {
		t.Fatalf("firn token create: %v\n%s", err, out)
	}
	wantPulled(t, s, pushOne(t, s, token))
}
