package e2e

import (
	"net/http"
	"slices"
	"testing"

	"firn/nix"
)

// Clients no longer get a deleted path at once, although the server had it in memory, and get all
// other paths as before.
func TestDeletePath(t *testing.T) {
	t.Parallel()
	host, s, root, all := pushDebian(t, "bash")
	path, err := nix.DefaultStoreDir.ParsePath(root)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.narInfo(path)
	if err != nil {
		t.Fatal(err)
	}
	status := func(name string) int {
		t.Helper()
		code, _ := fetch(t, newClient(t), s.url+"/"+name)
		return code
	}
	narinfo := path.Hash().String() + ".narinfo"
	if a, b := status(narinfo), status(info.URL); a != http.StatusOK || b != http.StatusOK {
		t.Fatalf("before: narinfo %d, NAR %d", a, b)
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == root })
	// A path that others refer to stays.
	for _, ref := range info.References {
		if ref != path {
			host.refused([]string{"--with-referrers"}, firnPath, "path", "delete", "--state", host.dir+"/state", ref.String())
		}
	}
	admin(host, "path delete", root)
	if a, b := status(narinfo), status(info.URL); a != http.StatusNotFound || b != http.StatusNotFound {
		t.Errorf("after: narinfo %d, NAR %d", a, b)
	}
	m := newMachine(t, newestNix())
	m.refused([]string{path.Name()}, "nix", "copy", "--from", s.url, root, "--option", "trusted-public-keys", s.publicKey)
	m.run(append([]string{"nix", "copy", "--from", s.url, "--option", "trusted-public-keys", s.publicKey}, rest...)...)
	wantStore(m, s, rest)
	admin(host, "verify")
}
