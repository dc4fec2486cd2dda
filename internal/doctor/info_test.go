package doctor

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"firn/nix"
)

// webPage is what a server answers that means people.
const webPage = "<!DOCTYPE html><title>Log in</title>"

func around(a func(http.ResponseWriter, *http.Request, http.Handler)) func(*fixture) {
	return func(f *fixture) { f.around = a }
}

func TestCacheInfo(t *testing.T) {
	info := func(text string) func(*fixture) {
		return func(f *fixture) { f.files["nix-cache-info"] = []byte(text) }
	}
	none := func(text string) map[string]string {
		return skips(map[string]string{"cache-info": "fail " + text}, after("cache-info", "substituters")...)
	}
	findAll(t, map[string]fault{
		"nothing":   {func(*fixture) {}, nil},
		"no cache":  {around(on("cache-info", http.NotFound)), none("there is no nix-cache-info")},
		"failure":   {around(on("cache-info", answerWith(500, "boom"))), none("500 Internal Server Error")},
		"web page":  {around(on("cache-info", answerWith(200, webPage))), none("is a web page")},
		"empty":     {info("\n"), none("is empty")},
		"garbage":   {info("\x1b[31mhello"), none(`is "\x1b[31mhello"`)},
		"endless":   {info(strings.Repeat("x: y\n", 1<<16)), none("more than 65536 bytes")},
		"loop":      {around(on("cache-info", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) })), none("more than 10 redirects")},
		"strange":   {around(header("cache-info", "Content-Encoding", "rot13")), none(`Content-Encoding: "rot13"`)},
		"early end": {around(on("cache-info", answerWith(200, "StoreDir: ", "Content-Length", "50"))), none("ends early")},
		"silence": {func(f *fixture) {
			f.opts.Patience = 200 * time.Millisecond
			f.around = on("cache-info", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		}, none("timeout awaiting response headers")},
		"no HTTP": {around(on("cache-info", func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Write([]byte("SSH-2.0-\x1b[31mred\r\n"))
				conn.Close()
			}
		})), none("malformed HTTP")},
		"large header": {around(header("cache-info", "X-Large", strings.Repeat("x", 200<<10))), none("exceeded")},

		"other store": {info("StoreDir: /gnu/store\nWantMassQuery: 1\nPriority: 30\n"), skips(map[string]string{
			"store-dir": `fail "/gnu/store"`, "narinfo": "fail StorePath",
		}, "signature", "references", "nar", "nar-encoding", "compression", "nar-hash", "ranges")},
		"no store":       {info("WantMassQuery: 1\nPriority: 30\n"), map[string]string{"store-dir": "warn no StoreDir"}},
		"no priority":    {info("StoreDir: /nix/store\nWantMassQuery: 1\n"), map[string]string{"priority": "warn no Priority"}},
		"wrong priority": {info("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: high\n"), map[string]string{"priority": `fail "high" is no number`}},
		"shy":            {info("StoreDir: /nix/store\nWantMassQuery: 0\nPriority: 41\n"), map[string]string{"mass-query": "warn WantMassQuery"}},
		"CR LF":          {info("StoreDir: /nix/store\r\nWantMassQuery: 1\r\nPriority: 40\r\n"), nil},
		"moved": {func(f *fixture) {
			f.url = func(at string) string { return at + "/old" }
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if rest, old := strings.CutPrefix(r.URL.Path, "/old"); old {
					http.Redirect(w, r, rest, http.StatusMovedPermanently)
					return
				}
				next.ServeHTTP(w, r)
			}
		}, map[string]string{"redirects": "warn 1 on"}},
		"not asked": {func(f *fixture) { f.opts.Substituters = []string{"https://cache.nixos.org"} }, map[string]string{"substituters": "warn not in substituters"}},
		"no Nix":    {func(f *fixture) { f.opts.Substituters = []string{} }, map[string]string{"substituters": "warn not in substituters"}},
	})
}

// Of what there is not, clients have to hear that in a way that has them ask the next cache.
func TestMissing(t *testing.T) {
	// misses answers what the cache does not have.
	misses := func(answer http.HandlerFunc) func(*fixture) {
		return func(f *fixture) {
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if _, has := f.files[strings.TrimPrefix(r.URL.Path, "/")]; !has {
					answer(w, r)
					return
				}
				next.ServeHTTP(w, r)
			}
		}
	}
	findAll(t, map[string]fault{
		"gone":       {misses(answerWith(410, "")), nil},
		"forbidden":  {misses(answerWith(403, "")), map[string]string{"missing": "warn a narinfo that there is not is 403 Forbidden"}},
		"everything": {misses(answerWith(200, "")), map[string]string{"missing": "fail a narinfo that there is not is 200 OK"}},
		"pages":      {misses(answerWith(200, webPage)), map[string]string{"missing": "fail a web page"}},
		"failures":   {misses(answerWith(502, "")), map[string]string{"missing": "fail 502 Bad Gateway"}},
		"nothing": {misses(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
			map[string]string{"missing": "fail is answered by nothing"}},
		"login": {func(f *fixture) {
			f.files["login"] = []byte(webPage)
			misses(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) })(f)
		}, map[string]string{"missing": "fail a web page"}},
		"of HEAD": {func(f *fixture) {
			misses(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				http.NotFound(w, r)
			})(f)
		}, map[string]string{"missing": "fail the HEAD of a narinfo that there is not is 500"}},
		"of NARs": {func(f *fixture) {
			misses(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/nar/") {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				http.NotFound(w, r)
			})(f)
		}, map[string]string{"missing": "fail a NAR that there is not is 500"}},
	})
}

func TestCredentials(t *testing.T) {
	login := func(password string, netrc string) func(*fixture) {
		return func(f *fixture) {
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if _, got, _ := r.BasicAuth(); got != "secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			}
			if password != "" {
				f.url = func(at string) string { return strings.Replace(at, "://", "://me:"+password+"@", 1) }
			}
			if netrc != "" {
				f.opts.Netrc = filepath.Join(f.t.TempDir(), "netrc")
				if err := os.WriteFile(f.opts.Netrc, []byte(netrc), 0o600); err != nil {
					f.t.Fatal(err)
				}
			}
			f.opts.Substituters = []string{}
		}
	}
	other := map[string]string{"substituters": "warn"}
	refused := skips(map[string]string{"cache-info": "fail wants a user and a password", "credentials": "fail does not take", "substituters": "warn"}, after("cache-info", "substituters", "credentials")...)
	unknown := skips(map[string]string{"cache-info": "fail wants a user and a password", "credentials": "skip none are known", "substituters": "warn"}, after("cache-info", "substituters", "credentials")...)
	findAll(t, map[string]fault{
		"in the URL":       {login("secret", ""), other},
		"in netrc":         {login("", "machine 127.0.0.1 login me password secret\n"), other},
		"wrong in the URL": {login("wrong", ""), refused},
		"wrong in netrc":   {login("", "machine 127.0.0.1 login me password wrong\n"), refused},
		"other host":       {login("", "machine elsewhere login me password secret\n"), unknown},
		"none":             {login("", ""), unknown},
		"not needed": {func(f *fixture) {
			login("secret", "")(f)
			f.around = nil
		}, other},
	})

	// 403 is no 401: the password is known. What the server says is shown.
	refuse := func(with, without int, text string) func(*fixture) {
		return func(f *fixture) {
			login("", "machine 127.0.0.1 login me password secret\n")(f)
			f.around = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				code := without
				if _, _, ok := r.BasicAuth(); ok {
					code = with
				}
				w.Header().Set("Content-Type", "text/plain")
				w.WriteHeader(code)
				fmt.Fprint(w, text)
			}
		}
	}
	const words = "there is no cache of this name\x1b[31m that this token may read"
	rest := after("cache-info", "substituters", "credentials")
	findAll(t, map[string]fault{
		"without the right": {refuse(403, 401, words), skips(map[string]string{
			"cache-info": `fail 403 Forbidden, and the server says "there is no cache of this name\x1b[31m that this token may read"`, "credentials": "fail the server knows the password, but does not let it read this", "substituters": "warn"}, rest...)},
		"refused with words": {refuse(401, 401, strings.Repeat("x", 5000)), skips(map[string]string{
			"cache-info": `fail 401 Unauthorized, and the server says "` + strings.Repeat("x", maxWords) + `…"`, "credentials": "fail does not take", "substituters": "warn"}, rest...)},
		"forbidden to all": {refuse(403, 403, ""), skips(map[string]string{"cache-info": "fail 403 Forbidden", "credentials": "skip may not have looked", "substituters": "warn"}, rest...)},
		"broken":           {refuse(500, 401, "internal error"), skips(map[string]string{"cache-info": "fail 500 Internal Server Error", "credentials": "skip cannot be told", "substituters": "warn"}, rest...)},
		"no login":         {login("", "machine 127.0.0.1 password secret\nmachine other login a password b\n"), map[string]string{"netrc": `warn has no login for "machine 127.0.0.1"`, "substituters": "warn"}},
		"no login of others": {login("", "machine other password x\nmachine 127.0.0.1 login me password secret\n"),
			map[string]string{"substituters": "warn"}},
		"with a port": {login("", "machine 127.0.0.1:5610 login me password secret\n"), skips(map[string]string{
			"netrc": `warn has "machine 127.0.0.1:5610", and netrc files know no ports`, "cache-info": "fail 401", "credentials": "skip none are known", "substituters": "warn"}, rest...)},
		"default without a login": {login("", "default password secret\n"), map[string]string{"netrc": `warn has no login for "default"`, "substituters": "warn"}},
	})

	// The password goes to nobody else, and no finding shows it.
	f := newFixture(t)
	login("secret", "")(f)
	for _, finding := range f.examine() {
		if strings.Contains(finding.Seen+finding.Advice, "secret") {
			t.Errorf("%s shows the password: %s", finding.Check, finding.Seen)
		}
	}
	if _, err := Examine(t.Context(), "http://127.0.0.1:1", Options{Netrc: filepath.Join(t.TempDir(), "absent")}); err == nil {
		t.Error("a netrc file that is not there is no error")
	}
}

func TestNoPath(t *testing.T) {
	rest := []string{"narinfo", "signature", "references", "head", "nar", "nar-encoding", "compression", "nar-hash", "ranges"}
	other, err := nix.DefaultStoreDir.ParseBase(strings.Repeat("4", 32) + "-other")
	if err != nil {
		t.Fatal(err)
	}
	findAll(t, map[string]fault{
		"none":        {func(f *fixture) { f.opts.Path, f.opts.NoCandidates = nix.PathHash{}, "there is no store" }, skips(map[string]string{"path": "skip there is no store; name a store path"}, rest...)},
		"not there":   {func(f *fixture) { f.opts.Path = other.Hash() }, skips(map[string]string{"path": "fail 404 Not Found"}, rest...)},
		"others":      {func(f *fixture) { f.opts.Path, f.opts.Candidates = nix.PathHash{}, []nix.StorePath{other} }, skips(map[string]string{"path": "skip of 1 store paths"}, rest...)},
		"a neighbour": {func(f *fixture) { f.opts.Path, f.opts.Candidates = nix.PathHash{}, []nix.StorePath{other, f.info.Path} }, nil},
		"failure":     {around(on(strings.Repeat("1", 32)+".narinfo", answerWith(503, ""))), skips(map[string]string{"path": "fail 503"}, rest...)},
	})
}

// Of a server of firn, it is told whether its disk is nearly full; and only there it is asked
// whether a password may push.
func TestServer(t *testing.T) {
	serve := func(health string, push int) func(*fixture) {
		return func(f *fixture) {
			f.opts.Push = push != 0
			f.url = func(at string) string { return at + "/team" }
			f.around = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				switch name, inCache := strings.CutPrefix(r.URL.Path, "/team"); {
				case r.Method == http.MethodPut && r.URL.Path == "/team/nix-cache-info":
					if body, err := io.ReadAll(r.Body); err != nil || string(body) != "StoreDir: /nix/store\n" {
						f.t.Errorf("uploaded is %q, %v", body, err)
					}
					http.Error(w, "this token may not push here", push)
				case r.Method == http.MethodPut:
					f.t.Errorf("PUT %s", r.URL)
				case r.URL.Path == "/version" && health != "":
					fmt.Fprintln(w, "firn 1.0")
				case r.URL.Path == "/health":
					fmt.Fprint(w, health)
				case inCache:
					r.URL.Path = name
					next.ServeHTTP(w, r)
				default:
					http.NotFound(w, r)
				}
			}
		}
	}
	findAll(t, map[string]fault{
		"another server":  {serve("", 0), nil},
		"push to another": {serve("", 403), map[string]string{"push": "skip only a server of firn"}},
		"push":            {serve("ok\n", 204), nil},
		"may not push":    {serve("ok\n", 403), map[string]string{"push": `fail it may not push: 403 Forbidden, and the server says "this token may not push here"`}},
		"nobody":          {serve("ok\n", 401), map[string]string{"push": "fail no password is known"}},
		"keeps nothing":   {serve("ok\n", 405), map[string]string{"push": "fail it cannot be pushed to: 405"}},
		"room":            {serve("ok\n", 0), nil},
		"no room":         {serve("ok, but the disk is nearly full: what is pushed may be refused\n", 0), map[string]string{"room": `warn "the disk is nearly full: what is pushed may be refused"`}},
		"another page":    {serve("all systems operational\n", 0), nil},
	})
	f := newFixture(t)
	serve("ok\n", 0)(f)
	for _, finding := range f.examine() {
		if finding.Check == "room" && finding.Verdict == OK {
			return
		}
	}
	t.Error("the room is not told")
}
