package server

import (
	"strings"

	"firn/internal/cache"
	"firn/nix"
)

// route is a kind of thing that can be asked for. Routes are in the order of routeNames.
type route uint8

const (
	routeOther route = iota
	routePage
	routeCacheInfo
	routeNARInfo
	routeNAR
	routeZstdNAR
	routeListing
	routeLog
	routeRealisation
	routeBuildTrace
	routeDebugInfo
	routeVersion
	routeHealth
	routeMetrics
	routeRobots
	routeChallenge

	// Uploads are counted on their own: they take other times.
	routePutNAR
	routePutNARInfo
	routePutOther
	routes int = iota

	// routeNoSlash is the front page of a cache, without the slash that makes its links right. It is
	// counted as routeOther.
	routeNoSlash = route(routes)
)

// routeNames are the routes in metrics and logs.
var routeNames = [routes]string{
	"other", "page", "nix-cache-info", "narinfo", "nar", "nar.zst", "ls", "log", "realisation", "build-trace", "debuginfo",
	"version", "health", "metrics", "robots", "acme", "upload nar", "upload narinfo", "upload other",
}

func (r route) String() string { return routeNames[r] }

// ofServer reports whether the route is of the whole server, not of a cache.
func (r route) ofServer() bool { return routeVersion <= r && r <= routeChallenge }

// canBePut reports whether clients upload things of this kind.
func (r route) canBePut() bool { return routeCacheInfo <= r && r <= routeDebugInfo }

// put returns the route that counts uploads of things of this kind.
func (r route) put() route {
	switch r {
	case routeNAR, routeZstdNAR:
		return routePutNAR
	case routeNARInfo:
		return routePutNARInfo
	}
	return routePutOther
}

// A urlForm is a row of the table of URLs. It matches paths, relative to the root of a cache or of
// the server, that begin with prefix and end in suffix; what is between them names one thing. With
// neither a slash at the end of prefix nor a suffix, the path has to be prefix itself.
type urlForm struct {
	prefix, suffix string
	route          route
}

// urlForms is the table of URLs. docs/http.md has the same table, with what each row means. The form
// that clients ask for most comes first.
//
// What is firn's own, and comes from now on, is below _/: no cache has a name that begins with '_'.
// The names at the root of the server are reserved, see [cache.CheckName].
var urlForms = []urlForm{
	{"", ".narinfo", routeNARInfo},
	{"nix-cache-info", "", routeCacheInfo},
	{"nar/", ".nar", routeNAR},
	{"nar/", ".nar.zst", routeZstdNAR},
	{"nar/", ".nar.xz", routeNAR},
	{"nar/", ".nar.bz2", routeNAR},
	{"nar/", ".nar.lzip", routeNAR},
	{"nar/", ".nar.lz4", routeNAR},
	{"nar/", ".nar.br", routeNAR},
	{"", ".ls", routeListing},
	{"log/", "", routeLog},
	{"realisations/", ".doi", routeRealisation},
	{"build-trace-v2/", ".doi", routeBuildTrace},
	{"debuginfo/", "", routeDebugInfo},
	{"", "", routePage},

	// Of the server only.
	{"version", "", routeVersion},
	{"health", "", routeHealth},
	{"metrics", "", routeMetrics},
	{"robots.txt", "", routeRobots},
	{".well-known/acme-challenge/", "", routeChallenge},
}

// match returns what a path names in this form.
func (f *urlForm) match(path string) (name string, ok bool) {
	rest, ok := strings.CutPrefix(path, f.prefix)
	if !ok {
		return "", false
	}
	if name, ok = strings.CutSuffix(rest, f.suffix); !ok {
		return "", false
	}
	switch {
	case strings.HasSuffix(f.prefix, "/"):
		return name, true
	case f.suffix == "":
		return name, name == ""
	}
	return name, !strings.Contains(name, "/")
}

// target is what a URL asks for: the route, and the part of the path that names one thing of that
// kind, which is not checked yet.
type target struct {
	cache string // name of a cache, checked; "" if the host tells which
	route route
	name  string
	ext   string // of a NAR: what follows .nar
}

// parsePath splits the decoded path of a URL. Of several slashes in a row one counts, as clients join
// URLs carelessly. A path that has none of the forms at the root, and begins with a name that a cache
// may have, is asked of that cache.
func parsePath(path string) target {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	path = strings.TrimPrefix(path, "/")
	t := parseTarget(path)
	if t.route != routeOther {
		return t
	}
	name, rest, slash := strings.Cut(path, "/")
	if cache.CheckName(name) != nil {
		return target{}
	}
	if slash {
		t = parseTarget(rest)
	} else {
		t.route = routeNoSlash
	}
	if t.route.ofServer() {
		t = target{}
	}
	t.cache = name
	return t
}

// parseTarget splits a path that is relative to the root of a cache.
func parseTarget(path string) target {
	for i := range urlForms {
		f := &urlForms[i]
		if name, ok := f.match(path); ok {
			t := target{route: f.route, name: name}
			if t.isNAR() {
				t.ext = strings.TrimPrefix(f.suffix, ".nar")
			}
			return t
		}
	}
	return target{}
}

// isNAR reports whether the target is a NAR.
func (t target) isNAR() bool { return t.route == routeNAR || t.route == routeZstdNAR }

// compressionOf has the compressions whose names Nix appends to the URL of a NAR. It appends nothing
// for the others.
var compressionOf = map[string]nix.Compression{
	".xz": nix.XZ, ".bz2": nix.Bzip2, ".zst": nix.Zstd, ".lzip": nix.Lzip, ".lz4": nix.LZ4, ".br": nix.Brotli,
}
