package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"firn/nix"
)

// manyReferences is how many references a narinfo of more than a megabyte has, with names of 200
// characters.
const manyReferences = 4800

// manyNames is an expression of a file that names so many store paths.
var manyNames = fmt.Sprintf(`let names = builtins.genList (i: builtins.toFile "%s-${toString (10000 + i)}" "") %d;
in builtins.toFile "names" (builtins.concatStringsSep "\n" names)`, strings.Repeat("a-long-name-", 16), manyReferences)

// A path with thousands of references is served from the local store, pushed over HTTP and ssh-ng,
// imported, and fetched again.
func TestManyReferences(t *testing.T) {
	t.Parallel()
	origin := newMachine(t, systemNix())
	expr := origin.write("names.nix", manyNames)
	path := origin.run("nix-instantiate", "--eval", "--read-write-mode", "--strict", "--json", expr)
	path = strings.Trim(path, `"`)
	p, err := nix.DefaultStoreDir.ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := func(n nixSystem) *machine { // a machine with all of it
		m := newMachine(t, n)
		if err := os.RemoveAll(m.path("nix")); err != nil {
			t.Fatal(err)
		}
		origin.run("cp", "-a", "/nix", m.dir+"/nix")
		return m
	}
	wantServed := func(s *server) string {
		t.Helper()
		text := s.text(p.Hash().String() + ".narinfo")
		if len(text) < 1<<20 {
			t.Errorf("the narinfo has %d bytes", len(text))
		}
		if info, err := s.narInfo(p); err != nil || len(info.References) != manyReferences {
			t.Errorf("the narinfo: %v", err)
		}
		return text
	}

	// The server has what it refers to, as a build that only the client has does.
	local := copied(systemNix())
	wantServed(startFirn(local))
	host := copied(systemNix())
	host.run("nix-store", "--delete", path)
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		client := copied(n)
		if got := client.run("nix-store", "--query", "--references", path); len(lines(got)) != manyReferences {
			t.Fatalf("the client's path has %d references", len(lines(got)))
		}
		reader := copied(n) // has what it refers to
		for _, over := range []string{"http", "ssh-ng"} {
			state := filepath.Join(tempDir(t), "state")
			s := startServer(host, firnPath, "serve", "--state", state, "--ssh", "127.0.0.1:0")
			if over == "http" {
				login(client, tokenText.FindString(host.run(firnPath, "token", "create", "--state", state, "--push", "main", "ci")))
				client.run("nix", "copy", "--to", s.url, path)
			} else {
				key := sshKey(client, "key")
				host.run(firnPath, "sshkey", "add", "--state", state, "--push", "main", "ci", key+".pub")
				port := regexp.MustCompile(`NIX_SSHOPTS='-p (\d+)'`).FindStringSubmatch(s.announced)[1]
				known, err := os.ReadFile(filepath.Join(state, "ssh/ssh_host_ed25519_key.pub"))
				if err != nil {
					t.Fatal(err)
				}
				file := client.write("known_hosts", fmt.Sprintf("[127.0.0.1]:%s %s", port, known))
				pusher := &sshClient{client, []string{"-F", "none", "-p", port, "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "UserKnownHostsFile=" + file}}
				pusher.nix("nix", "copy", "--to", "ssh-ng://main@127.0.0.1", path)
			}
			text := wantServed(s)

			// Fetched by a machine that has what it refers to.
			reader.run("nix-store", "--delete", path)
			reader.run(append([]string{"nix-store", "--realise", path}, s.trust()...)...)
			sameTree(t, client.path(path), reader.path(path))

			// Imported into a cache that does without the rest.
			dir := tempDir(t)
			info, err := s.narInfo(p)
			if err != nil {
				t.Fatal(err)
			}
			var file bytes.Buffer
			res, err := s.get(info.URL)
			if err == nil {
				_, err = io.Copy(&file, res.Body)
				res.Body.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(dir, "nar"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, content := range map[string]string{"nix-cache-info": "StoreDir: /nix/store\n", p.Hash().String() + ".narinfo": text, info.URL: file.String()} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			other := newMachine(t, systemNix())
			into := startDepot(other)
			admin(other, "cache set", "main", "--allow-missing-references")
			admin(other, "import", dir)
			wantServed(into)
		}
	})
}

// push uploads a file to a server, and returns what that answers.
func push(t testing.TB, s *server, token, name, text string) (status int, said string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.url+"/"+name, strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("any", token)
	res, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// Signatures of other algorithms, and fields that Nix does not know, harm no Nix: not even one that
// trusts an Ed25519 key of that name, as far as the server can know that there is such a key.
func TestOtherSignatures(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		client := newMachine(t, n)
		output, _ := build(client, "", "echo "+n.version+" >$out")
		p, err := nix.DefaultStoreDir.ParsePath(output)
		if err != nil {
			t.Fatal(err)
		}
		host := newMachine(t, systemNix())
		s := startDepot(host)
		own, _, _ := strings.Cut(s.publicKey, ":")
		token := newToken(host, "ci", "--push", "main")
		theirs := filepath.Join(client.dir, "theirs")
		client.run("nix-store", "--generate-binary-cache-key", "theirs-1", theirs, theirs+".pub")
		dir := filepath.Join(tempDir(t), "cache")
		client.run("nix", "copy", "--to", "file://"+dir+"?compression=none&secret-key="+theirs, output)
		text, err := os.ReadFile(filepath.Join(dir, p.Hash().String()+".narinfo"))
		if err != nil {
			t.Fatal(err)
		}
		info, err := nix.ParseNARInfoStrict(nix.DefaultStoreDir, text)
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(filepath.Join(dir, info.URL))
		if err != nil {
			t.Fatal(err)
		}
		if status, said := push(t, s, token, info.URL, string(file)); status != http.StatusCreated {
			t.Fatalf("%d: %s", status, said)
		}
		other := func(name string, size int) string {
			return "Sig: " + name + ":" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, size)) + "\n"
		}
		narInfo := p.Hash().String() + ".narinfo"
		if status, said := push(t, s, token, narInfo, string(text)+other(own, 4627)); status != http.StatusBadRequest || !strings.Contains(said, "Sig: ") {
			t.Errorf("a signature under the name of the cache's own key: %d: %s", status, said)
		}
		lines := other("ecdsa-1", 103) + other("ml-dsa-1", 2420) + other("ml-dsa-2", 3309) + other("ml-dsa-3", 4627) + "Provenance: {\"type\":\"copied\",\"from\":\"https://example.org\"}\n"
		if status, said := push(t, s, token, narInfo, string(text)+lines+other("theirs-1", 4627)); status != http.StatusCreated {
			t.Fatalf("%d: %s", status, said)
		}
		served := s.text(narInfo)
		for line := range strings.Lines(lines) {
			if !strings.Contains(served, line) {
				t.Errorf("it is served without %.60q…", line)
			}
		}
		public, err := os.ReadFile(theirs + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		for _, keys := range []string{s.publicKey, string(public), s.publicKey + " " + string(public)} {
			m := newMachine(t, n)
			m.run("nix-store", "--realise", output, "--option", "substituters", s.url, "--option", "trusted-public-keys", keys)
			sameTree(t, client.path(output), m.path(output))
			if !n.isOld() {
				m = newMachine(t, n)
				m.run("nix", "copy", "--from", s.url, output, "--option", "trusted-public-keys", keys)
			}
		}
		// A copy of the cache has all of it.
		copied := tempDir(t)
		admin(host, "export", copied)
		again := newMachine(t, systemNix())
		into := startDepot(again)
		admin(again, "import", copied)
		served = into.text(narInfo)
		for line := range strings.Lines(lines) {
			if !strings.Contains(served, line) {
				t.Errorf("after export and import it is served without %.60q…", line)
			}
		}
	})
}

// Signatures are added to a path that only the server's own store has, and served with it.
func TestSignLocalPath(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		host := newMachine(t, systemNix())
		output, _ := build(host, "", "echo local >$out")
		p, err := nix.DefaultStoreDir.ParsePath(output)
		if err != nil {
			t.Fatal(err)
		}
		s := startFirn(host)
		m := newMachine(t, n)
		login(m, newToken(host, "ci", "--push", "main"))
		file := func(name string) string { return filepath.Join(m.dir, name) }
		for _, key := range []string{"a-1", "b-1"} {
			m.run("nix-store", "--generate-binary-cache-key", key, file(key), file(key+".pub"))
		}
		m.run("nix", "store", "sign", "--store", s.url, "--key-file", file("a-1"), output)
		m.run("nix", "copy", "--from", s.url, output, "--option", "trusted-public-keys", s.publicKey)
		other := "file://" + file("other")
		m.run("nix", "copy", "--to", other+"?secret-key="+file("b-1"), output)
		m.run("nix", "store", "copy-sigs", "--store", s.url, "--substituter", other, output)
		info, err := s.narInfo(p)
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, sig := range info.Signatures {
			names[sig.Name] = true
		}
		if len(names) != 3 || !names["a-1"] || !names["b-1"] {
			t.Errorf("it is signed by %v", names)
		}
		for _, key := range []string{"a-1", "b-1"} {
			public, err := os.ReadFile(file(key + ".pub"))
			if err != nil {
				t.Fatal(err)
			}
			reader := newMachine(t, n)
			reader.run("nix-store", "--realise", output, "--option", "substituters", s.url, "--option", "trusted-public-keys", string(public))
		}
	})
}

// A cache that is taken for a builder says that it builds nothing.
func TestCacheIsNoBuilder(t *testing.T) {
	t.Parallel()
	eachLaterNix(t, func(t *testing.T, n nixSystem) {
		s, client := startPusher(t, n)
		known := filepath.Join(client.dir, "known_hosts")
		expr := client.write("test.nix", `derivation {
  name = "y-`+n.version+`"; system = builtins.currentSystem; builder = "/bin/sh"; outputs = [ "out" "dev" ];
  args = [ "-c" "echo >$out; echo >$dev" ];
}`)
		key := client.options[len(client.options)-1]
		for i, o := range client.options {
			if o == "-i" {
				key = client.options[i+1]
			}
		}
		options := strings.Join([]string{"-F", "none", "-p", s.port, "-o", "UserKnownHostsFile=" + known}, " ")
		system := strings.Trim(client.run("nix-instantiate", "--eval", "-E", "builtins.currentSystem"), `"`)
		for _, scheme := range schemes {
			_, err := client.try("env", "NIX_SSHOPTS="+options, "nix", "build", "--impure", "-f", expr, "--no-link", "-j0",
				"--builders", scheme+"://main@127.0.0.1 "+system+" "+key+" 1")
			if err == nil || !strings.Contains(err.Error(), "builds nothing") {
				t.Errorf("a build by %s: %v", scheme, err)
			}
		}
		_, err := client.try(client.with("nix", "build", "--impure", "-f", expr, "--no-link", "--eval-store", "auto", "--store", "ssh-ng://main@127.0.0.1")...)
		if err == nil || !strings.Contains(err.Error(), "builds nothing") {
			t.Errorf("a build in ssh-ng: %v", err)
		}
	})
}
