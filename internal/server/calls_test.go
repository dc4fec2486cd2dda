package server

import (
	"strconv"
	"strings"
)

// call is a request, and what its answer must be.
type call struct {
	name    string
	method  string // GET and HEAD if empty
	target  string
	headers []string
	status  int
	want    []string // headers of the answer, "Name: value"; "Name: " if it must not be there
	body    string   // "*" for anything
}

// calls are what clients, careless clients and hostile clients ask.
func calls(t *tester) []call {
	narBody := string(t.path.NAR)
	text, err := t.cache.NARInfo(t.Context(), t.path.Info.Path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	narHeaders := []string{
		"Content-Type: application/x-nix-nar", "Content-Length: 120", "Accept-Ranges: bytes", `ETag: "` + helloNARHash + `"`,
		"Cache-Control: public, max-age=31536000, immutable", "Content-Encoding: ", "X-Content-Type-Options: nosniff",
		"Content-Security-Policy: default-src 'none'; sandbox",
	}
	notFound := []string{"Content-Type: text/plain; charset=utf-8", "Cache-Control: public, max-age=5", "ETag: "}
	const (
		nothing  = "nothing here\n"
		noHash   = "this is not a path hash: it has 32 digits of Nix's base 32\n"
		noNAR    = "this is not the name of a NAR here\n"
		noUpload = "no NAR was uploaded under this name\n"
		noDrv    = "this is not the name of a derivation\n"
		noLog    = "no log of " + absentHash + "-x.drv here\n"
		noPath   = "no store path with hash " + absentHash + " here\n"
		goneNAR  = "no such NAR of a store path with hash " + absentHash + " here\n"
		otherNAR = "no such NAR of a store path with hash " + helloHash + " here\n"
	)
	return []call{
		{"cache info", "", "/nix-cache-info", nil, 200,
			[]string{"Content-Type: text/x-nix-cache-info"}, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"},
		{"narinfo", "", "/" + helloHash + ".narinfo", nil, 200,
			[]string{"Content-Type: text/x-nix-narinfo", "Cache-Control: public, max-age=300", "Vary: Accept", "ETag: ",
				"Content-Length: " + strconv.Itoa(len(text))}, string(text)},
		{"narinfo to Nix", "", "/" + helloHash + ".narinfo", []string{"Accept: */*", "Accept-Encoding: zstd, br, gzip, deflate"}, 200,
			[]string{"Content-Type: text/x-nix-narinfo", "Content-Encoding: "}, string(text)},
		{"narinfo as JSON", "", "/" + helloHash + ".narinfo?json", nil, 200,
			[]string{"Content-Type: application/json", "Cache-Control: no-store"}, "*"},
		{"narinfo as JSON by header", "", "/" + helloHash + ".narinfo", []string{"Accept: application/json"}, 200,
			[]string{"Content-Type: application/json", "Cache-Control: no-store", "Vary: Accept"}, "*"},
		{"no narinfo", "", "/" + absentHash + ".narinfo", nil, 404, notFound, noPath},
		{"no narinfo as JSON", "", "/" + absentHash + ".narinfo?json", nil, 404, notFound, noPath},
		{"malformed narinfo: short", "", "/abc.narinfo", nil, 404, notFound, noHash},
		{"malformed narinfo: alphabet", "", "/e0000000000000000000000000000000.narinfo", nil, 404, notFound, noHash},
		{"malformed narinfo: empty", "", "/.narinfo", nil, 404, notFound, noHash},
		{"malformed narinfo: markup", "", "/%3Cscript%3E.narinfo", nil, 404, notFound, noHash},
		{"malformed narinfo: traversal", "", "/..%2f..%2fetc%2fpasswd.narinfo", nil, 404, notFound, nothing},
		{"malformed narinfo: long", "", "/" + strings.Repeat("0", 20_000) + ".narinfo", nil, 404, notFound, noHash},
		{"encoded", "", "/%69" + helloHash[1:] + "%2Enarinfo", nil, 200, nil, string(text)},
		{"two slashes", "", "//" + helloHash + ".narinfo", nil, 200, nil, string(text)},
		{"many slashes", "", "////nar///" + helloHash + "-" + helloNARHash + ".nar", nil, 200, nil, narBody},

		{"NAR", "", helloNAR, nil, 200, narHeaders, narBody},
		{"NAR to Nix", "", helloNAR, []string{"Accept-Encoding: zstd, br, gzip, deflate, bzip2, xz"}, 200, narHeaders, narBody},
		{"NAR with a query", "", helloNAR + "?x=y", nil, 200, narHeaders, narBody},
		{"NAR as nix-serve had it", "", "/nar/" + helloHash + ".nar", nil, 200,
			[]string{"Content-Length: 120", "Cache-Control: public, max-age=300", `ETag: "` + helloNARHash + `"`}, narBody},
		{"NAR as harmonia had it", "", "/nar/" + helloNARHash + ".nar?hash=" + helloHash, nil, 200, narHeaders, narBody},
		{"NAR with another hash", "", "/nar/" + helloHash + "-" + otherNARHash + ".nar", nil, 404, notFound, otherNAR},
		{"NAR with another hash, as harmonia had it", "", "/nar/" + otherNARHash + ".nar?hash=" + helloHash, nil, 404, notFound, otherNAR},
		{"no NAR", "", "/nar/" + absentHash + "-" + helloNARHash + ".nar", nil, 404, notFound, goneNAR},
		{"NAR by NAR hash only", "", "/nar/" + helloNARHash + ".nar", nil, 404, notFound, noUpload},
		{"NAR with a malformed query", "", "/nar/" + helloNARHash + ".nar?hash=%zz", nil, 404, notFound, noNAR},
		{"malformed NAR: separator", "", "/nar/" + helloHash + "_" + helloNARHash + ".nar", nil, 404, notFound, noNAR},
		{"malformed NAR: alphabet", "", "/nar/" + helloHash + "-" + strings.Repeat("e", 52) + ".nar", nil, 404, notFound, noNAR},
		{"malformed NAR: empty", "", "/nar/.nar", nil, 404, notFound, noNAR},
		{"malformed NAR: suffix", "", "/nar/" + helloHash + ".nar.xz", nil, 404, notFound, noNAR},
		{"malformed NAR: deeper", "", "/nar/x/" + helloHash + ".nar", nil, 404, notFound, noNAR},

		{"range", "", helloNAR, []string{"Range: bytes=96-101"}, 206,
			[]string{"Content-Range: bytes 96-101/120", "Content-Length: 6", `ETag: "` + helloNARHash + `"`, "Accept-Ranges: bytes"}, "hello\n"},
		{"range: first byte", "", helloNAR, []string{"Range: bytes=0-0"}, 206, []string{"Content-Range: bytes 0-0/120"}, narBody[:1]},
		{"range: last byte", "", helloNAR, []string{"Range: bytes=119-119"}, 206, []string{"Content-Range: bytes 119-119/120"}, narBody[119:]},
		{"range: to the end", "", helloNAR, []string{"Range: bytes=100-"}, 206, []string{"Content-Range: bytes 100-119/120"}, narBody[100:]},
		{"range: all", "", helloNAR, []string{"Range: bytes=0-"}, 206, []string{"Content-Range: bytes 0-119/120"}, narBody},
		{"range: beyond the end", "", helloNAR, []string{"Range: bytes=100-999999999999999999999"}, 206, []string{"Content-Range: bytes 100-119/120"}, narBody[100:]},
		{"range: suffix", "", helloNAR, []string{"Range: bytes=-20"}, 206, []string{"Content-Range: bytes 100-119/120"}, narBody[100:]},
		{"range: long suffix", "", helloNAR, []string{"Range: bytes=-99999999999999999999"}, 206, []string{"Content-Range: bytes 0-119/120"}, narBody},
		{"range: unit in capitals", "", helloNAR, []string{"Range: Bytes=0-0"}, 206, nil, narBody[:1]},
		{"range after the end", "", helloNAR, []string{"Range: bytes=120-"}, 416,
			[]string{"Content-Range: bytes */120", "Accept-Ranges: ", "ETag: "}, "there are no such bytes\n"},
		{"range far after the end", "", helloNAR, []string{"Range: bytes=99999999999999999999-"}, 416, []string{"Content-Range: bytes */120"}, "*"},
		{"range: empty suffix", "", helloNAR, []string{"Range: bytes=-0"}, 416, []string{"Content-Range: bytes */120"}, "*"},
		{"range: backwards", "", helloNAR, []string{"Range: bytes=5-4"}, 200, narHeaders, narBody},
		{"range: several", "", helloNAR, []string{"Range: bytes=0-1,3-4"}, 200, narHeaders, narBody},
		{"range: two headers", "", helloNAR, []string{"Range: bytes=0-1", "Range: bytes=3-4"}, 200, narHeaders, narBody},
		{"range: another unit", "", helloNAR, []string{"Range: lines=0-1"}, 200, narHeaders, narBody},
		{"range: no digits", "", helloNAR, []string{"Range: bytes=a-b"}, 200, narHeaders, narBody},
		{"range: signs", "", helloNAR, []string{"Range: bytes=+1-+2"}, 200, narHeaders, narBody},
		{"range: nothing", "", helloNAR, []string{"Range: bytes="}, 200, narHeaders, narBody},
		{"range: dash", "", helloNAR, []string{"Range: bytes=-"}, 200, narHeaders, narBody},
		{"range: two dashes", "", helloNAR, []string{"Range: bytes=--1"}, 200, narHeaders, narBody},
		{"if-range", "", helloNAR, []string{"Range: bytes=0-0", `If-Range: "` + helloNARHash + `"`}, 206, nil, narBody[:1]},
		{"if-range: another", "", helloNAR, []string{"Range: bytes=0-0", `If-Range: "x"`}, 200, narHeaders, narBody},
		{"if-range: weak", "", helloNAR, []string{"Range: bytes=0-0", `If-Range: W/"` + helloNARHash + `"`}, 200, narHeaders, narBody},
		{"if-range: date", "", helloNAR, []string{"Range: bytes=0-0", "If-Range: Sun, 22 Nov 2026 10:00:00 GMT"}, 200, narHeaders, narBody},
		{"if-none-match", "", helloNAR, []string{`If-None-Match: "` + helloNARHash + `"`}, 304,
			[]string{`ETag: "` + helloNARHash + `"`, "Content-Length: ", "Cache-Control: public, max-age=31536000, immutable"}, ""},
		{"if-none-match: weak, in a list", "", helloNAR, []string{`If-None-Match: "x", W/"` + helloNARHash + `"`}, 304, nil, ""},
		{"if-none-match: any", "", helloNAR, []string{"If-None-Match: *"}, 304, nil, ""},
		{"if-none-match: before range", "", helloNAR, []string{"If-None-Match: *", "Range: bytes=0-0"}, 304, []string{"Content-Range: "}, ""},
		{"if-none-match: another", "", helloNAR, []string{`If-None-Match: "x"`}, 200, narHeaders, narBody},
		{"if-match", "", helloNAR, []string{`If-Match: "` + helloNARHash + `"`}, 200, narHeaders, narBody},
		{"if-match: another", "", helloNAR, []string{`If-Match: "x"`}, 412, []string{"ETag: "}, "it is another one\n"},

		{"listing", "", "/" + helloHash + ".ls", nil, 200, []string{"Content-Type: application/json"},
			`{"version":1,"root":{"type":"regular","size":6,"executable":false,"narOffset":96}}` + "\n"},
		{"no listing", "", "/" + absentHash + ".ls", nil, 404, notFound, noPath},
		{"malformed listing", "", "/x.ls", nil, 404, notFound, noHash},

		{"log", "", "/log/" + logName, nil, 200,
			[]string{"Content-Type: text/plain; charset=utf-8", "X-Content-Type-Options: nosniff",
				"Content-Security-Policy: default-src 'none'; sandbox", "Content-Length: 26"}, "<script>alert(1)</script>\n"},
		{"log, escaped", "", "/log/" + strings.ReplaceAll(strings.ReplaceAll(logName, "?", "%3F"), "+", "%2B"), nil, 200, nil, "*"},
		{"no log", "", "/log/" + absentHash + "-x.drv", nil, 404, notFound, noLog},
		{"log of what is no derivation", "", "/log/" + absentHash + "-x", nil, 404, notFound, noDrv},
		{"malformed log", "", "/log/../../etc/passwd", nil, 404, notFound, noDrv},
		{"malformed log: query", "", "/log/" + absentHash + "-x?%zz.drv", nil, 404, notFound, noDrv},
		{"malformed log: nothing", "", "/log/", nil, 404, notFound, noDrv},

		{"realisation", "", realisation, nil, 200, []string{"Content-Type: application/json"}, "*"},
		{"realisation, escaped", "", strings.ReplaceAll(strings.ReplaceAll(realisation, ":", "%3A"), "!", "%21"), nil, 200, nil, "*"},
		{"no realisation", "", strings.Replace(realisation, "!out", "!dev", 1), nil, 404, notFound, "*"},
		{"malformed realisation", "", "/realisations/x.doi", nil, 404, notFound, "*"},
		{"build trace", "", "/build-trace-v2/" + strings.ReplaceAll(logName, "?", "%3F") + "/out.doi", nil, 200,
			[]string{"Content-Type: application/json"}, "*"},
		{"no build trace", "", "/build-trace-v2/" + absentHash + "-x.drv/out.doi", nil, 404, notFound, "*"},
		{"malformed build trace", "", "/build-trace-v2/x/out.doi", nil, 404, notFound, "*"},
		{"debug info", "", "/debuginfo/0123456789abcdef0123456789abcdef01234567.debug", nil, 404, notFound, "no debug info of 0123456789abcdef0123456789abcdef01234567 here\n"},

		{"version", "", "/version", nil, 200, []string{"Content-Type: text/plain; charset=utf-8"}, "firn 1.2.3\n"},
		{"health", "", "/health", nil, 200, []string{"Cache-Control: no-store"}, "ok\n"},
		{"robots", "", "/robots.txt", nil, 200, nil, "User-agent: *\nDisallow: /\n"},
		{"nothing", "", "/nothing", nil, 404, notFound, nothing},
		{"nothing below something", "", "/nix-cache-info/x", nil, 404, notFound, nothing},

		{"PUT", "PUT", "/" + helloHash + ".narinfo", nil, 405, []string{"Allow: GET, HEAD"}, "this cache keeps nothing that is pushed to it\n"},
		{"POST", "POST", "/", nil, 405, []string{"Allow: GET, HEAD"}, "*"},
		{"DELETE", "DELETE", helloNAR, nil, 405, []string{"Allow: GET, HEAD, PUT"}, "this method is not answered here\n"},
		{"OPTIONS", "OPTIONS", "/nothing", nil, 405, []string{"Allow: GET, HEAD"}, "*"},
	}
}
