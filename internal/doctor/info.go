package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"firn/internal/cache"
	"firn/internal/remote"
	"firn/nix"
)

// maxPage bounds what is read of an answer that nothing is expected of, in bytes.
const maxPage = 4 << 10

// An infoField is a line of nix-cache-info.
type infoField struct{ key, value string }

// checkCacheInfo asks for what makes a server a cache.
func (e *examination) checkCacheInfo(ctx context.Context) Finding {
	a, err := e.small(ctx, e.file("nix-cache-info"), nix.MaxCacheInfoSize)
	switch {
	case errors.Is(err, cache.ErrInvalid):
		return fail(fmt.Sprintf("nix-cache-info leads nowhere: %v", err), "mend the redirects of the server, or of the proxy before it")
	case err != nil:
		return fail(fmt.Sprintf("nix-cache-info cannot be had: %v", err), "look at the logs of the server, and of the proxy before it")
	case a.is(http.StatusUnauthorized):
		e.status = a.status
		return fail("the server wants a user and a password: "+a.refused(), e.loginAdvice())
	case a.is(http.StatusForbidden):
		e.status = a.status
		return fail("nix-cache-info: "+a.refused(), forbiddenAdvice)
	case a.is(http.StatusNotFound), a.is(http.StatusGone):
		return fail("there is no nix-cache-info", "look at the path in the URL: that of the cache itself, which nix-cache-info is right below; without that file nothing is a cache")
	case !a.is(http.StatusOK):
		return fail("nix-cache-info: "+a.refused(), "clients take nothing but 200 for it: look at the logs of the server, and of the proxy before it")
	case a.page():
		return fail("nix-cache-info is a web page", "look at the path in the URL, and at the proxy before the server: it should answer 404 for what there is not, and no page")
	case a.over:
		return fail(fmt.Sprintf("nix-cache-info has more than %d bytes", nix.MaxCacheInfoSize), "it has to be a few short lines")
	case len(bytes.TrimSpace(a.body)) == 0:
		return fail("nix-cache-info is empty", "it has to be there with at least the line StoreDir: "+string(e.opts.StoreDir))
	}
	for line := range strings.Lines(string(a.body)) {
		if key, value, found := strings.Cut(line, ":"); found {
			e.fields = append(e.fields, infoField{key, strings.TrimSpace(value)})
		}
	}
	if len(e.fields) == 0 {
		return fail("nix-cache-info is "+shown(string(a.body)), "it has to have at least the line StoreDir: "+string(e.opts.StoreDir))
	}
	e.cacheInfo = a
	return ok("%s", shown(strings.ReplaceAll(strings.TrimSpace(string(a.body)), "\n", ", ")))
}

// field returns what nix-cache-info says, the last time that it does.
func (e *examination) field(key string) (value string, said bool) {
	for _, f := range slices.Backward(e.fields) {
		if f.key == key {
			return f.value, true
		}
	}
	return "", false
}

// forbiddenAdvice is for 403: a server that does not know a password answers 401.
const forbiddenAdvice = "is the name of the cache in the URL right? If it is, this password may not read it: on a server of firn, firn token list shows what it may"

func (e *examination) loginAdvice() string {
	host := e.site.Base.Hostname()
	switch {
	case e.site.User != nil && e.opts.Netrc != "":
		return fmt.Sprintf("the password for %s in %s is not taken: it may have expired or been revoked; firn token create makes one for a cache of firn", host, e.opts.Netrc)
	case e.site.User != nil:
		return "the password in the URL is not taken: it may have expired or been revoked; firn token create makes one for a cache of firn"
	case e.opts.Netrc != "":
		return fmt.Sprintf("%s has no password for %s: add the line: machine %s login any password PASSWORD", e.opts.Netrc, host, host)
	}
	return fmt.Sprintf("put the line: machine %s login any password PASSWORD into the file that netrc-file in nix.conf names, /etc/nix/netrc by default, or name another one with --netrc-file", host)
}

func (e *examination) checkStoreDir(context.Context) Finding {
	dir, said := e.field("StoreDir")
	switch {
	case !said:
		return warn("nix-cache-info has no StoreDir, so clients take it for theirs", "add the line StoreDir: "+string(e.opts.StoreDir))
	case dir != string(e.opts.StoreDir):
		return fail(fmt.Sprintf("the cache is for the store directory %s, and this machine's is %s", shown(dir), e.opts.StoreDir),
			"a client can use only caches of its own store directory: use another cache")
	}
	return ok("%s, as on this machine", dir)
}

func (e *examination) checkPriority(context.Context) Finding {
	value, said := e.field("Priority")
	if !said {
		return warn("nix-cache-info has no Priority, so this cache is asked before all others", "add one: the lowest is asked first, and cache.nixos.org has 40")
	}
	priority, err := strconv.Atoi(value)
	if err != nil {
		return fail("the Priority "+shown(value)+" is no number, which Nix refuses", "make it one: the lowest is asked first, and cache.nixos.org has 40")
	}
	switch {
	case priority < 40:
		return ok("%d: clients ask it before cache.nixos.org, which has 40", priority)
	case priority > 40:
		return ok("%d: clients ask it after cache.nixos.org, which has 40", priority)
	}
	return ok("40, like that of cache.nixos.org: clients ask in the order of their configuration")
}

func (e *examination) checkMassQuery(context.Context) Finding {
	if value, _ := e.field("WantMassQuery"); value != "1" {
		return warn("nix-cache-info has no WantMassQuery: 1, so nix-env -qas does not ask this cache", "add that line, unless the server cannot bear many requests")
	}
	return ok("clients may ask for many paths at once")
}

func (e *examination) checkRedirects(context.Context) Finding {
	a := e.cacheInfo
	if a.hops == 0 {
		return ok("none on the way to nix-cache-info")
	}
	to := strings.TrimSuffix(a.at.String(), "nix-cache-info")
	return warn(fmt.Sprintf("nix-cache-info is somewhere else, at %s, %d on", shown(to), a.hops), "name that URL on clients, or else each request is made twice or more; uploads by Nix before 2.29 cannot be redirected at all")
}

// checkNetrc looks for what clients do not read as it is meant.
func (e *examination) checkNetrc(context.Context) Finding {
	faults, err := remote.NetrcFaults(e.opts.Netrc, e.site.Base)
	if err != nil {
		return fail(err.Error(), "mend it, so that each entry has a line: machine HOST login USER password PASSWORD")
	}
	var complaints []Finding
	for _, f := range faults {
		entry := "machine " + f.Machine
		if f.Machine == "" {
			entry = "default"
		}
		if f.HasPort {
			complaints = append(complaints, warn(fmt.Sprintf("%s has %q, and netrc files know no ports, so no client reads that", e.opts.Netrc, entry),
				"write machine "+e.site.Base.Hostname()+", without the port"))
		} else {
			complaints = append(complaints, warn(fmt.Sprintf("%s has no login for %q, and older clients, such as Nix 2.8, then send a wrong password", e.opts.Netrc, entry),
				"write "+entry+" login any password PASSWORD: firn takes any name"))
		}
	}
	return worst(Finding{}, complaints)
}

// maxVersion bounds what is read of /version, in bytes.
const maxVersion = 256

// findServer finds out whether the server is firn, which has /version and /health at its root, or
// where a proxy has put that.
func (e *examination) findServer(ctx context.Context) *url.URL {
	if e.root != nil {
		return e.root
	}
	top := *e.site.Base
	top.Path = "/"
	for _, root := range []*url.URL{e.site.Base, &top} {
		a, err := e.small(ctx, request{url: root.JoinPath("version"), anonymous: true}, maxVersion)
		if err == nil && a.is(http.StatusOK) && !a.page() && bytes.HasPrefix(a.body, []byte("firn ")) {
			e.root = root
			return root
		}
	}
	return nil
}

// checkPush asks whether the password may push, with an upload that firn checks and drops, so that
// nothing is left behind.
func (e *examination) checkPush(ctx context.Context) Finding {
	if e.findServer(ctx) == nil {
		return skip("only a server of firn can be asked without leaving something behind")
	}
	dir, said := e.field("StoreDir")
	if !said {
		dir = string(e.opts.StoreDir)
	}
	q := e.file("nix-cache-info")
	q.method, q.body = http.MethodPut, "StoreDir: "+dir+"\n"
	a, err := e.small(ctx, q, maxPage)
	switch {
	case err != nil:
		return fail(fmt.Sprintf("the question was not answered: %v", err), "look at the logs of the server, and of the proxy before it")
	case a.is(http.StatusNoContent), a.is(http.StatusCreated), a.is(http.StatusOK):
		return ok("this password may push")
	case a.is(http.StatusUnauthorized) && e.site.User == nil:
		return fail("no password is known for this server, and pushing takes one", e.loginAdvice())
	case a.is(http.StatusUnauthorized):
		return fail("the password is not taken: "+a.refused(), e.loginAdvice())
	case a.is(http.StatusForbidden):
		return fail("it may not push: "+a.refused(), "on the server, firn token list shows what a token may, and firn token create --push makes one that may push")
	}
	return fail("it cannot be pushed to: "+a.refused(), "see what the server says, and the proxy before it: it has to let PUT through")
}

// checkRoom looks at what a server of firn says of the room on its disk.
func (e *examination) checkRoom(ctx context.Context) Finding {
	root := e.findServer(ctx)
	if root == nil {
		return Finding{}
	}
	a, err := e.small(ctx, request{url: root.JoinPath("health"), anonymous: true}, maxPage)
	if err != nil || a.page() || !a.is(http.StatusOK) {
		return Finding{}
	}
	said, ok := strings.CutPrefix(strings.TrimSpace(string(a.body)), "ok")
	switch said, more := strings.CutPrefix(said, ", but "); {
	case !ok:
		return Finding{}
	case more:
		return warn("the server says "+shown(said), "make room on the disk of its state directory, or delete paths or caches: firn stats on the server tells what will be free, and when")
	}
	return Finding{Verdict: OK, Seen: "the server does not say that its disk is nearly full"}
}

// checkCredentials asks with the user name and password, and without.
func (e *examination) checkCredentials(ctx context.Context) Finding {
	if e.site.User == nil {
		if e.cacheInfo == nil {
			return skip("none are known for this host")
		}
		return ok("none are needed to read")
	}
	q := e.file("nix-cache-info")
	q.anonymous = true
	a, err := e.small(ctx, q, maxPage)
	if err != nil {
		return fail(fmt.Sprintf("the question without a password was not answered: %v", err), "look at the logs of the server")
	}
	clear := e.site.Base.Scheme == "http" && !loopback(e.site.Base.Hostname())
	switch {
	case e.status == http.StatusForbidden && a.is(http.StatusForbidden):
		return skip("the server answers 403 with the password and without, so it may not have looked at it")
	case e.status == http.StatusForbidden:
		return fail("the server knows the password, but does not let it read this", forbiddenAdvice)
	case e.status == http.StatusUnauthorized:
		return fail("the server does not take the password that is known for it", e.loginAdvice())
	case e.cacheInfo == nil:
		return skip("whether the password is taken cannot be told without nix-cache-info")
	case clear:
		return warn("there is a password for this host, and it is sent over http, where others on the way can read it", "use https, and make a new password")
	case a.is(http.StatusOK):
		return ok("there is a password for this host; reading this cache takes none")
	}
	return ok("the server takes the password that is known for it; without, it answers %s", status(a.status))
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// checkSubstituters looks whether this machine asks the cache at all.
func (e *examination) checkSubstituters(context.Context) Finding {
	if e.opts.Substituters == nil {
		return skip("this machine has no configuration of Nix")
	}
	for _, s := range e.opts.Substituters {
		u, err := url.Parse(s)
		if err == nil && u.Scheme == e.site.Base.Scheme && u.Host == e.site.Base.Host && strings.TrimSuffix(u.Path, "/")+"/" == e.site.Base.Path {
			return ok("this machine asks the cache: it is in substituters")
		}
	}
	return warn("this machine does not ask this cache: it is not in substituters of nix.conf", "if it should, add: extra-substituters = "+strings.TrimSuffix(e.site.Base.String(), "/"))
}

// checkMissing asks for what no cache has.
func (e *examination) checkMissing(ctx context.Context) Finding {
	var hash nix.PathHash
	var sum [32]byte
	rand.Read(hash[:]) // never fails
	rand.Read(sum[:])
	narInfo := e.file(hash.String() + ".narinfo")
	head := narInfo
	head.method = http.MethodHead
	nar := e.file("nar/" + nix.SHA256Sum(sum).Nix32() + ".nar.xz")
	var complaints []Finding
	for _, c := range []struct {
		what string
		q    request
	}{{"a narinfo", narInfo}, {"the HEAD of a narinfo", head}, {"a NAR", nar}} {
		a, err := e.small(ctx, c.q, maxPage)
		if err != nil {
			complaints = append(complaints, fail(fmt.Sprintf("%s that there is not is answered by nothing: %v", c.what, err), missingAdvice))
			continue
		}
		seen := fmt.Sprintf("%s that there is not is %s", c.what, status(a.status))
		switch {
		case a.is(http.StatusNotFound), a.is(http.StatusGone):
		case a.is(http.StatusForbidden):
			complaints = append(complaints, warn(seen, "clients take that for a miss, as object stores answer it where listing is forbidden; 404 would tell it from what is really forbidden"))
		case a.is(http.StatusOK) && a.page():
			complaints = append(complaints, fail(seen+", a web page", missingAdvice))
		case a.is(http.StatusOK):
			complaints = append(complaints, fail(seen, missingAdvice))
		default:
			complaints = append(complaints, fail(seen, missingAdvice))
		}
	}
	return worst(ok("what there is not is 404"), complaints)
}

const missingAdvice = "clients ask the next cache on 404 only: have the server, and the proxy before it, answer that"
