package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"firn/nix"
)

// maxCandidates is how many paths a cache is asked for in search of one that it has.
const maxCandidates = 64

// checkPath finds a path that is there.
func (e *examination) checkPath(ctx context.Context) Finding {
	if e.opts.Path != (nix.PathHash{}) {
		a, err := e.narInfoOf(ctx, e.opts.Path)
		switch {
		case err != nil:
			return fail(fmt.Sprintf("the narinfo of %s cannot be had: %v", e.opts.Path, err), "look at the logs of the server")
		case !a.is(http.StatusOK):
			return fail(fmt.Sprintf("the narinfo of %s: %s", e.opts.Path, a.refused()), "is the path in this cache? If it was pushed or built a moment ago, clients that asked before remember for an hour that it was not there")
		}
		return e.found(a, e.opts.Path)
	}
	if len(e.opts.Candidates) == 0 {
		return skip("%s", strings.TrimPrefix(e.opts.NoCandidates+"; name a store path that the cache should have with --path", "; "))
	}
	asked := e.opts.Candidates[:min(len(e.opts.Candidates), maxCandidates)]
	for _, path := range asked {
		a, err := e.narInfoOf(ctx, path.Hash())
		if err != nil {
			return fail(fmt.Sprintf("the narinfo of %s cannot be had: %v", path, err), "look at the logs of the server")
		}
		if a.is(http.StatusOK) {
			return e.found(a, path.Hash())
		}
	}
	return skip("of %d store paths of this machine the cache has none; name one that it should have with --path", len(asked))
}

func (e *examination) found(a *answer, hash nix.PathHash) Finding {
	e.path, e.hash = a, hash
	return ok("%s is there", hash)
}

func (e *examination) narInfoOf(ctx context.Context, hash nix.PathHash) (*answer, error) {
	return e.small(ctx, e.file(hash.String()+".narinfo"), nix.MaxNARInfoSize)
}

// checkNARInfo reads the narinfo as any Nix does.
func (e *examination) checkNARInfo(context.Context) Finding {
	text := e.path.body
	switch {
	case e.path.over:
		return fail(fmt.Sprintf("the narinfo has more than %d bytes", nix.MaxNARInfoSize), "no store path has that many references: see what the server sends")
	case e.path.page():
		return fail("the narinfo is a web page", "look at the proxy before the server: it should answer 404 for what there is not, and no page")
	}
	dir, _ := e.field("StoreDir")
	storeDir, err := nix.ParseStoreDir(dir)
	if err != nil {
		storeDir = e.opts.StoreDir
	}
	complaints := quirks(text)
	info, err := nix.ParseNARInfo(storeDir, text)
	if err != nil {
		complaints = append(complaints, fail(cause(err), "no client can read that: see what the server makes of the path"))
		return worst(Finding{}, complaints)
	}
	e.narInfo = info
	if info.Path.Hash() != e.hash {
		complaints = append(complaints, fail(fmt.Sprintf("it is that of %s, and %s was asked for", info.Path, e.hash), "clients refuse that: see what the server, or a cache before it, mixes up"))
	}
	if e.narURL, err = e.site.Resolve(info.URL); err != nil {
		complaints = append(complaints, warn("its URL leads to another host, "+shown(info.URL)+", which is not asked here",
			"make it a path relative to the cache: Nix 2.3 cannot follow it, and others only as long as that host is there"))
	}
	if _, err := nix.ParseNARInfoStrict(storeDir, text); err != nil && len(complaints) == 0 {
		complaints = append(complaints, warn(cause(err), "Nix takes it, but not every client may: it should be as Nix itself writes it"))
	}
	return worst(ok("%s, %s of NAR, compression %s, %s", info.Path, bytesOf(info.NARSize), info.Compression, plural(len(info.References), "reference")), complaints)
}

// cause is the error of a narinfo, as part of a sentence.
func cause(err error) string { return strings.TrimPrefix(err.Error(), "parse narinfo: ") }

// quirks finds what some Nix refuses, or reads as something else, though the text says clearly what it means.
// Nix takes a value from two bytes after the colon up to the line feed, and gives up where there is no line feed.
func quirks(text []byte) (complaints []Finding) {
	add := func(f Finding) {
		if !slices.ContainsFunc(complaints, func(c Finding) bool { return c.Seen == f.Seen }) {
			complaints = append(complaints, f)
		}
	}
	if !bytes.HasSuffix(text, []byte("\n")) {
		add(fail("the last line does not end in a line feed, so Nix says that it is corrupt", "add it: the file may have been cut short, or written by hand"))
	}
	if bytes.Contains(text, []byte("\r")) {
		add(fail("lines end in CR LF, so Nix says that it is corrupt", "write it with LF: something on the way takes it for a text of Windows"))
	}
	compression := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		key, value, colon := strings.Cut(line, ":")
		switch {
		case !colon:
			add(fail("a line has no colon: "+shown(line)+", and Nix takes what follows for part of it", "take the line out"))
			continue
		case !strings.HasPrefix(value, " "):
			add(fail("no space follows the colon of "+shown(key)+", so Nix drops the first character of its value, or swallows the next line", "write it as Nix does: NAME, colon, space, value"))
		}
		value = strings.TrimSpace(value)
		switch key {
		case "Compression":
			compression = true
			if !nix.Compression(value).Known() {
				add(fail("Nix does not know the compression "+shown(value), "it knows xz, zstd, bzip2, gzip, br, lz4, lzip, lzma and none"))
			}
		case "Sig":
			if _, err := nix.ParseSignature(value); err != nil {
				add(fail("a Sig is no signature: "+shown(value)+", so Nix since 2.34 refuses the whole narinfo", "take it out, or sign again"))
			}
		case "URL":
			if strings.HasPrefix(value, "/") {
				add(warn("its URL begins with a slash, which means the root of the host since Nix 2.32, and the root of the cache before", "take the slash away"))
			}
		}
	}
	if !compression {
		add(warn("it does not say its Compression, which means bzip2", "say it"))
	}
	return complaints
}

// checkSignature looks for a signature by a key that this machine trusts.
func (e *examination) checkSignature(context.Context) Finding {
	info := e.narInfo
	if !info.CA.IsZero() && info.CheckContentAddress() == nil {
		return ok("the path is the address of its contents, and needs none; %s", signedBy(info.Signatures))
	}
	if len(e.opts.TrustedKeys) == 0 {
		return skip("%s; no key is known that this machine trusts: name some with --trusted-public-keys", signedBy(info.Signatures))
	}
	fingerprint := info.AppendFingerprint(nil)
	var wrong []string
	for _, s := range info.Signatures {
		for _, k := range e.opts.TrustedKeys {
			switch {
			case k.Verify(fingerprint, s):
				return ok("by %s, which %s trusts", s.Name, e.opts.TrustedBy)
			case k.Name() == s.Name:
				wrong = append(wrong, shown(s.Name))
			}
		}
	}
	switch {
	case len(info.Signatures) == 0:
		return fail("the path has no signature, and clients refuse it", "give the server a key to sign with, or sign the path with nix store sign; then add the public key to trusted-public-keys of clients")
	case len(wrong) > 0:
		return fail("the signature by "+strings.Join(wrong, ", ")+" is not what the trusted key of this name makes of this path",
			"the server has another key of the same name, or the narinfo was changed after it was signed: compare the public keys of server and client")
	}
	return fail(fmt.Sprintf("%s, and %s does not trust that", signedBy(info.Signatures), e.opts.TrustedBy),
		"if you do, get the public key from the administrator of the cache and add it to nix.conf: extra-trusted-public-keys = "+keyName(info.Signatures[0].Name)+":…")
}

// keyName is the name of a key, if that is harmless.
func keyName(name string) string {
	if strings.Trim(shown(name), `"`) != name {
		return "NAME"
	}
	return name
}

func signedBy(signatures []nix.Signature) string {
	if len(signatures) == 0 {
		return "it has no signature"
	}
	var names []string
	for _, s := range signatures {
		names = append(names, shown(s.Name))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > 4 {
		names = append(names[:4], fmt.Sprintf("%d more", len(names)-4))
	}
	return "signed by " + strings.Join(names, ", ")
}

// checkReferences asks for some of what the path refers to.
func (e *examination) checkReferences(ctx context.Context) Finding {
	var refs []nix.StorePath
	for _, r := range e.narInfo.References {
		if r != e.narInfo.Path {
			refs = append(refs, r)
		}
	}
	if len(refs) == 0 {
		return ok("the path refers to no other")
	}
	asked := refs[:min(len(refs), e.opts.References)]
	var missing []string
	for _, r := range asked {
		q := e.file(r.Hash().String() + ".narinfo")
		a, err := e.small(ctx, q, nix.MaxNARInfoSize)
		switch {
		case err != nil:
			return fail(fmt.Sprintf("the narinfo of the reference %s cannot be had: %v", r, err), "look at the logs of the server")
		case a.is(http.StatusNotFound), a.is(http.StatusGone), a.is(http.StatusForbidden):
			missing = append(missing, r.String())
		case !a.is(http.StatusOK):
			return fail(fmt.Sprintf("the narinfo of the reference %s: %s", r, status(a.status)), "look at the logs of the server")
		}
	}
	if len(missing) > 0 {
		return warn(fmt.Sprintf("%d of %d references are not there, such as %s", len(missing), len(asked), missing[0]),
			"that is fine where clients have another cache with them; else push the path with all that it refers to, as nix copy does")
	}
	return ok("%d of %s asked for, all there", len(asked), plural(len(refs), "reference"))
}

// checkHead compares HEAD with GET.
func (e *examination) checkHead(ctx context.Context) Finding {
	const advice = "nix copy asks with HEAD what is there: have the server, and the proxy before it, answer HEAD as GET, without the body"
	q := e.file(e.hash.String() + ".narinfo")
	q.method = http.MethodHead
	a, err := e.small(ctx, q, maxPage)
	var complaints []Finding
	switch {
	case err != nil:
		return fail(fmt.Sprintf("the HEAD of the narinfo is not answered: %v", err), advice)
	case !a.is(http.StatusOK):
		return fail("the narinfo is there, and its HEAD is "+status(a.status), advice)
	case differ(a, e.path):
		complaints = append(complaints, fail(fmt.Sprintf("the HEAD of the narinfo says %d bytes, and there are %d", a.length, e.path.length), advice))
	}
	if e.narURL == nil {
		return worst(ok("as GET for the narinfo; the NAR is not asked for"), complaints)
	}
	q = request{method: http.MethodHead, url: e.narURL}
	if a, err = e.small(ctx, q, maxPage); err != nil {
		return worst(Finding{}, append(complaints, fail(fmt.Sprintf("the HEAD of the NAR is not answered: %v", err), advice)))
	}
	e.head = a
	if !a.is(http.StatusOK) {
		complaints = append(complaints, fail("the HEAD of the NAR is "+status(a.status), advice))
	}
	return worst(ok("as GET for the narinfo, 200 for the NAR"), complaints)
}

// differ reports whether the answers to HEAD and GET say different lengths.
func differ(head, get *answer) bool {
	plain := func(a *answer) bool { return a.header.Get("Content-Encoding") == "" && a.length >= 0 }
	return plain(head) && plain(get) && head.length != get.length
}

// bytesOf is a size as people read it.
func bytesOf(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// plural is a number of things.
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
