package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"firn/nix"
)

// admin runs a command of firn that works on the state of the server that m runs.
func admin(m *machine, command string, args ...string) string {
	m.t.Helper()
	line := append([]string{firnPath}, strings.Fields(command)...)
	return m.run(append(append(line, "--state", filepath.Join(m.dir, "state")), args...)...)
}

var tokenText = regexp.MustCompile(`firn_[A-Za-z0-9_-]{43}`)

// newToken makes a token on the server that m runs.
func newToken(m *machine, name string, args ...string) string {
	m.t.Helper()
	out := admin(m, "token create", append(args, name)...)
	token := tokenText.FindString(out)
	if token == "" {
		m.t.Fatalf("firn token create printed %q", out)
	}
	return token
}

// login lets a machine use a token, as people do it.
func login(m *machine, token string) {
	m.t.Helper()
	netrc := m.write("netrc", "machine 127.0.0.1\nlogin anybody\npassword "+token+"\n")
	m.write("conf/nix.conf", nixConf+"netrc-file = "+netrc+"\n")
}

// debugTree makes a tree with debug information and returns the build ID.
func debugTree(t testing.TB, dir string) string {
	t.Helper()
	id := strings.Repeat("ab", 20)
	file := filepath.Join(dir, "lib/debug/.build-id", id[:2], id[2:]+".debug")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("debug information"), 0o644); err != nil {
		t.Fatal(err)
	}
	return id
}

// startDepot starts a server that has nothing but what is pushed to it. Its key has a name that no other server's has:
// a cache refuses a signature under the name of its own key that this has not made.
func startDepot(m *machine, args ...string) *server {
	m.t.Helper()
	state := filepath.Join(m.dir, "state")
	secret := filepath.Join(state, "signing-key.secret")
	if _, err := os.Stat(secret); err != nil {
		if err := os.MkdirAll(state, 0o700); err != nil {
			m.t.Fatal(err)
		}
		m.run(firnPath, "key", "generate", fmt.Sprintf("depot-%d-%d", os.Getpid(), depots.Add(1)), secret, filepath.Join(state, "signing-key.public"))
	}
	return startFirn(m, append([]string{"--store", "off"}, args...)...)
}

var depots atomic.Int64

// What any Nix pushes, in whatever form, another one gets back.
func TestPush(t *testing.T) {
	t.Parallel()
	origin := serveDebian(t)
	root := debianPath(t, smallClosure)
	want := closure(t, root.String())
	eachNix(t, func(t *testing.T, n nixSystem) {
		client := newMachine(t, n)
		client.run("nix", "copy", "--from", origin.url, root.String(), "--option", "trusted-public-keys", origin.publicKey)
		tree := filepath.Join(client.dir, "debug")
		id := debugTree(t, tree)
		debug := client.run("nix-store", "--add", tree)
		for _, compression := range n.compressions() {
			t.Run(compression, func(t *testing.T) {
				host := newMachine(t, systemNix())
				s := startDepot(host)
				login(client, newToken(host, "ci", "--push", "main"))
				to := s.url + "?compression=" + compression + "&write-nar-listing=true&index-debug-info=true"
				client.run("nix", "copy", "--to", to, root.String(), debug)
				client.run("nix", "copy", "--to", to, root.String(), debug) // there is nothing to do

				m := newMachine(t, n)
				m.run("nix", "copy", "--from", s.url, root.String(), debug, "--option", "trusted-public-keys", s.publicKey)
				all := append(slices.Clone(want), debug)
				slices.Sort(all)
				wantStore(m, s, all)
				for _, p := range all {
					sameTree(t, client.path(p), m.path(p))
				}
				info, err := s.narInfo(root)
				if err != nil {
					t.Fatal(err)
				}
				if info.Compression != nix.Zstd || len(info.Signatures) != 2 {
					t.Errorf("the narinfo says %s with signatures %v", info.Compression, info.Signatures)
				}
				checkDebugInfo(t, s, id, debug)
			})
		}
	})
}

// checkDebugInfo checks that debug information is found by its build ID, under both spellings.
func checkDebugInfo(t *testing.T, s *server, id, path string) {
	t.Helper()
	p, err := nix.DefaultStoreDir.ParsePath(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.narInfo(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{id, id + ".debug"} {
		var place struct{ Archive, Member string }
		if err := json.Unmarshal([]byte(s.text("debuginfo/"+name)), &place); err != nil {
			t.Fatal(err)
		}
		base, err := url.Parse(s.url + "/debuginfo/" + name)
		if err != nil {
			t.Fatal(err)
		}
		archive, err := base.Parse(place.Archive)
		if err != nil {
			t.Fatal(err)
		}
		want := "lib/debug/.build-id/" + id[:2] + "/" + id[2:] + ".debug"
		if place.Member != want || archive.String() != s.url+"/"+info.URL {
			t.Errorf("debuginfo/%s leads to %s in %s, want %s in %s/%s", name, place.Member, archive, want, s.url, info.URL)
		}
	}
}

// Without the right token nothing is kept, and Nix says why.
func TestPushRefused(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	s := startDepot(host)
	read := newToken(host, "reader", "--read", "main")
	revoked := newToken(host, "gone", "--push", "main")
	admin(host, "token revoke", "gone")
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		p := add(m, "file", 100)
		for _, test := range []struct{ token, status, words string }{
			{"", "401", "token"},
			{revoked, "401", "token"},
			{read, "403", "push"},
		} {
			if test.token != "" {
				login(m, test.token)
			}
			_, err := m.try("nix", "copy", "--to", s.url, p.String())
			if n.isOld() {
				test.words = "" // it does not show what a server says
			}
			if err == nil || !strings.Contains(err.Error(), test.status) || !strings.Contains(err.Error(), test.words) {
				t.Errorf("with the token %q: %v, want %s and %q", test.token, err, test.status, test.words)
			}
			if _, err := s.narInfo(p); err == nil {
				t.Errorf("%s was kept", p)
			}
		}
	})
}

// Signatures and logs can be added to what is there.
func TestPushSignaturesAndLogs(t *testing.T) {
	t.Parallel()
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		output, drv := build(m, "", "echo the log of a build; echo hello >$out")
		p, err := nix.DefaultStoreDir.ParsePath(output)
		if err != nil {
			t.Fatal(err)
		}
		host := newMachine(t, systemNix())
		s := startDepot(host)
		login(m, newToken(host, "ci", "--push", "main"))
		file := func(name string) string { return filepath.Join(m.dir, name) }
		for _, key := range []string{"a-1", "b-1", "c-1"} {
			m.run("nix-store", "--generate-binary-cache-key", key, file(key), file(key+".pub"))
		}
		wantKeys := func(names ...string) {
			t.Helper()
			info, err := s.narInfo(p)
			if err != nil {
				t.Fatal(err)
			}
			own, _, _ := strings.Cut(s.publicKey, ":")
			got := map[string]bool{}
			for _, sig := range info.Signatures {
				got[sig.Name] = true
			}
			want := append(names, own)
			slices.Sort(want)
			if all := slices.Sorted(maps.Keys(got)); !slices.Equal(all, want) {
				t.Errorf("signatures by %q, want %q", all, want)
			}
		}
		m.run("nix", "copy", "--to", s.url+"?secret-key="+file("a-1"), output)
		wantKeys("a-1")
		m.run("nix", "store", "sign", "--store", s.url, "--key-file", file("b-1"), output)
		wantKeys("a-1", "b-1")
		other := "file://" + file("other")
		m.run("nix", "copy", "--to", other+"?secret-key="+file("c-1"), output)
		m.run("nix", "store", "copy-sigs", "--store", s.url, "--substituter", other, output)
		wantKeys("a-1", "b-1", "c-1")

		reader := newMachine(t, n)
		if !n.isOld() { // which cannot upload logs
			m.run("nix", "store", "copy-log", "--to", s.url, drv)
			if got := reader.run("nix", "log", "--store", s.url, output); got != "the log of a build" {
				t.Errorf("the log of %s is %q", drv, got)
			}
		}
		key, err := os.ReadFile(file("c-1.pub"))
		if err != nil {
			t.Fatal(err)
		}
		reader.run("nix", "copy", "--from", s.url, output, "--option", "trusted-public-keys", string(key))
		sameTree(t, m.path(output), reader.path(output))
	})
}

// A machine with the hook of the handbook gets back what it built and pushed, when the garbage collector has taken it:
// Nix remembers of what it pushed a narinfo without the server's signatures.
func TestPushBuiltAndFetch(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/pushing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, hook, _ := strings.Cut(string(page), `/push-built" <<'EOF'`+"\n")
	hook, _, ok := strings.Cut(hook, "\nEOF\n")
	if !ok {
		t.Fatal("docs/pushing.md has no hook")
	}
	eachNix(t, func(t *testing.T, n nixSystem) {
		host := newMachine(t, systemNix())
		s := startDepot(host)
		m := newMachine(t, n)
		login(m, newToken(host, "ci", "--push", "main"))
		hook := hook
		if n.isOld() { // as the page says
			hook = strings.Replace(hook, " --extra-experimental-features nix-command", "", 1)
		}
		program := m.write("push-built", strings.Replace(hook, "\n", "\nCACHE='"+s.url+"?compression=none' REMEMBERED='"+m.dir+"/remembered'\n", 1))
		if err := os.Chmod(program, 0o755); err != nil {
			t.Fatal(err)
		}
		// Of each version another one: Nix does not delete what is in the environment of any process, such as another one that builds the same.
		output, _ := build(m, `version = "`+n.version+`";`, "echo built and pushed >$out", append(s.trust(), "--option", "post-build-hook", program)...)
		if p, err := nix.DefaultStoreDir.ParsePath(output); err != nil {
			t.Fatal(err)
		} else if _, err := s.narInfo(p); err != nil {
			t.Fatalf("the hook did not push: %v", err)
		}
		m.run("nix-store", "--delete", output)
		// Before it was built it was asked for, and for an hour Nix remembers that it was not there.
		m.run(append([]string{"nix-store", "--realise", output, "--option", "narinfo-cache-negative-ttl", "0"}, s.trust()...)...)
		if got, err := os.ReadFile(m.path(output)); err != nil || string(got) != "built and pushed\n" {
			t.Errorf("%s has %q, %v", output, got, err)
		}
	})
}

// What a content-addressed derivation was built to is pushed with it.
func TestPushContentAddressed(t *testing.T) {
	t.Parallel()
	const attributes = `__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";`
	const script = "echo content-addressed and pushed >$out"
	eachNix(t, func(t *testing.T, n nixSystem) {
		builder := newMachine(t, n)
		want, _ := build(builder, attributes, script)
		host := newMachine(t, systemNix())
		s := startDepot(host)
		login(builder, newToken(host, "ci", "--push", "main"))
		builder.run("nix", "copy", "--to", s.url, "--file", filepath.Join(builder.dir, "test.nix"))
		m := newMachine(t, n)
		got, _ := build(m, attributes, script, append(s.trust(), "--option", "max-jobs", "0")...)
		if got != want {
			t.Errorf("substituted %s, want %s", got, want)
		}
		sameTree(t, builder.path(got), m.path(got))
	})
}

// Nothing of a private cache can be had, or told to be there, without its token.
func TestPrivateCache(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	s := startDepot(host)
	admin(host, "cache create", "--private", "secret")
	token := newToken(host, "ci", "--push", "secret")
	inside := *s
	inside.url += "/secret"
	eventually(t, "the cache is there", func() bool {
		res, err := inside.get("nix-cache-info")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode == http.StatusUnauthorized
	})
	eachNix(t, func(t *testing.T, n nixSystem) {
		m := newMachine(t, n)
		p := add(m, "private-"+n.version, 10_000)
		login(m, token)
		m.run("nix", "copy", "--to", inside.url, p.String())
		reader := newMachine(t, n)
		if out, err := reader.try("nix", "copy", "--from", inside.url, p.String(), "--no-check-sigs"); err == nil {
			t.Errorf("without a token: %s", out)
		}
		if out, err := reader.try("nix", "copy", "--from", s.url, p.String(), "--no-check-sigs"); err == nil {
			t.Errorf("from another cache: %s", out)
		}
		login(reader, token)
		reader.run("nix", "copy", "--from", inside.url, p.String(), "--no-check-sigs")
		sameTree(t, m.path(p.String()), reader.path(p.String()))

		// Every answer is the same as for what is not there.
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, inside.url+"/"+p.Hash().String()+".narinfo", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth("anybody", token)
		res, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			t.Fatalf("%s: %v\n%s", res.Status, err, text)
		}
		absent := strings.NewReplacer(p.Hash().String(), strings.Repeat("0", 32), info.NARHash.Nix32(), strings.Repeat("0", 52))
		for _, from := range []*server{s, &inside} {
			for _, path := range []string{p.Hash().String() + ".narinfo", p.Hash().String() + ".ls", info.URL, "nar/" + p.Hash().String() + "-" + info.NARHash.Nix32() + ".nar", "nar/" + info.NARHash.Nix32() + ".nar"} {
				got, want := answer(t, from, path), answer(t, from, absent.Replace(path))
				if got = absent.Replace(got); got != want || strings.HasPrefix(got, "2") {
					t.Errorf("%s/%s is answered with\n%s\nand what is not there with\n%s", from.url, path, got, want)
				}
			}
		}
		for _, page := range []string{"", "metrics"} {
			if text := s.text(page); strings.Contains(text, p.Hash().String()) || strings.Contains(text, "/secret") {
				t.Errorf("/%s tells of the private cache:\n%s", page, text)
			}
		}
	})
}

// answer returns status, header and body of an answer, but for what differs each time.
func answer(t testing.TB, s *server, path string) string {
	t.Helper()
	res, err := s.get(path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Header.Del("Date")
	return fmt.Sprintf("%d\n%v\n%s", res.StatusCode, res.Header, body)
}
