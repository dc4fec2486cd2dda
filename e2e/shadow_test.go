package e2e

import (
	"net/http"
	"testing"

	"firn/nix"
)

// A pushed path has its URL for as long as it is there, also when the store of the server has
// another build of the path, or the same one.
func TestShadowedNAR(t *testing.T) {
	t.Parallel()
	withNixes(t, []nixSystem{systemNix(), newestNix()}, func(t *testing.T, n nixSystem) {
		h := newStoreHosts["as root"](t, n)
		add(h.machine, "any", 10) // so that there is a store
		h.start()
		client := newMachine(t, n)
		login(client, h.token)
		const text = "$(read id </proc/sys/kernel/random/uuid; echo $id)" // not reproducible
		p := buildOn(client, "app", text)
		h.push(client, p)
		reader := newMachine(t, n)
		fetchApp := append([]string{"nix-store", "--realise", p.String()}, h.trust()...)
		reader.run(append(fetchApp, "--dry-run")...) // it remembers the narinfo
		pushed, err := h.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}

		if got := buildOn(h.machine, "app", text); got != p {
			t.Fatalf("built %s, want %s", got, p)
		}
		local, err := h.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}
		if local.NARHash == pushed.NARHash {
			t.Fatal("both builds are the same")
		}
		for _, info := range []*nix.NARInfo{pushed, local} {
			res, err := h.get(info.URL)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusOK {
				t.Errorf("%s is answered with %s", info.URL, res.Status)
			}
			res.Body.Close()
		}
		for _, url := range []string{
			"nar/" + p.Hash().String() + "-" + pushed.NARHash.Nix32() + ".nar",
			"nar/" + pushed.NARHash.Nix32() + ".nar?hash=" + p.Hash().String(),
			"nar/" + pushed.NARHash.Nix32() + ".nar.zst?hash=" + p.Hash().String(),
		} {
			h.wantStatus("with another build", url, http.StatusOK)
		}
		if _, err := reader.try(fetchApp...); err != nil {
			t.Errorf("a client that remembers the narinfo: %v", err)
		}
		sameTree(t, client.path(p.String()), reader.path(p.String()))
		newMachine(t, n).run(fetchApp...)

		// The very same NAR in the store of the server does not hide the compressed one either.
		h.run("nix-store", "--delete", p.String())
		h.run(fetchApp...)
		if same, err := h.narInfo(p); err != nil || same.NARHash != pushed.NARHash || same.URL == pushed.URL {
			t.Errorf("the narinfo is %+v, %v", same, err)
		}
		h.wantStatus("with the same NAR in the store", pushed.URL, http.StatusOK)
	})
}
