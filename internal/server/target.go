package server

import (
	"strings"

	"firn/nix"
)

// route is a kind of thing that can be asked for. Its order is that of routeNames.
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

	// Uploads are counted by themselves: they take other times.
	routePutNAR
	routePutNARInfo
	routePutOther
	routes int = iota

	// routeNoSlash is the front page of a cache, without the slash that makes its links right. It is counted as routeOther.
	routeNoSlash = route(routes)
)

// routeNames are the routes in metrics and logs.
var routeNames = [routes]string{
	"other", "page", "nix-cache-info", "narinfo", "nar", "nar.zst", "ls", "log", "realisation", "build-trace", "debuginfo",
	"version", "health", "metrics", "robots", "acme", "upload nar", "upload narinfo", "upload other",
}

func (r route) String() string { return routeNames[r] }

// ofServer reports whether it is asked of the whole server, not of a cache.
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

// target is what a URL asks for: the route, and the part of the path that names one thing of that kind,
// which is not checked yet.
type target struct {
	cache string // name of a cache, checked; "" if the host tells which
	route route
	name  string
	ext   string // of a NAR: what follows .nar
}

// parsePath splits the decoded path of a URL. Of several slashes in a row one counts, as clients join URLs carelessly.
// What begins with no name of ours but with one that a cache may have, is asked of that cache.
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
	if !mayBeCache(name) {
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

// mayBeCache reports whether a cache may have this name: all but what means something at the root.
func mayBeCache(s string) bool {
	const most = 64
	if s == "" || len(s) > most || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || strings.Contains("-_.", s[:1]) {
		return false
	}
	switch s {
	case "nar", "log", "realisations", "build-trace-v2", "debuginfo", "version", "health", "metrics", "robots.txt", "nix-cache-info", "api":
		return false
	}
	return !strings.HasSuffix(s, ".narinfo") && !strings.HasSuffix(s, ".ls")
}

// parseTarget splits a path that is relative to the root of a cache.
//
//	<path hash>.narinfo                     routeNARInfo      <path hash>
//	<path hash>.ls                          routeListing      <path hash>
//	nar/<name>.nar                          routeNAR          <name>
//	nar/<name>.nar.zst                      routeZstdNAR      <name>
//	nar/<name>.nar.<extension>              routeNAR          <name>
//	log/<derivation>                        routeLog          <derivation>
//	realisations/<id>.doi                   routeRealisation  <id>
//	build-trace-v2/<derivation>/<output>.doi  routeBuildTrace   <derivation>/<output>
//	debuginfo/<build id>                    routeDebugInfo    <build id>
//	.well-known/acme-challenge/<token>      routeChallenge    <token>
func parseTarget(path string) target {
	dir, rest, inDir := strings.Cut(path, "/")
	if !inDir {
		if name, ok := strings.CutSuffix(path, ".narinfo"); ok {
			return target{route: routeNARInfo, name: name}
		}
		if name, ok := strings.CutSuffix(path, ".ls"); ok {
			return target{route: routeListing, name: name}
		}
		switch path {
		case "":
			return target{route: routePage}
		case "nix-cache-info":
			return target{route: routeCacheInfo}
		case "version":
			return target{route: routeVersion}
		case "health":
			return target{route: routeHealth}
		case "metrics":
			return target{route: routeMetrics}
		case "robots.txt":
			return target{route: routeRobots}
		}
		return target{}
	}
	switch dir {
	case "nar":
		name, ext, ok := cutLast(rest, ".nar")
		switch {
		case ok && ext == ".zst":
			return target{route: routeZstdNAR, name: name, ext: ext}
		case ok && (ext == "" || compressionOf[ext] != ""):
			return target{route: routeNAR, name: name, ext: ext}
		}
	case "log":
		return target{route: routeLog, name: rest}
	case "realisations":
		if id, ok := strings.CutSuffix(rest, ".doi"); ok {
			return target{route: routeRealisation, name: id}
		}
	case "build-trace-v2":
		if name, ok := strings.CutSuffix(rest, ".doi"); ok {
			return target{route: routeBuildTrace, name: name}
		}
	case ".well-known":
		if token, ok := strings.CutPrefix(rest, "acme-challenge/"); ok {
			return target{route: routeChallenge, name: token}
		}
	case "debuginfo":
		return target{route: routeDebugInfo, name: rest}
	}
	return target{}
}

// compressionOf are the compressions whose names Nix appends to the URL of a NAR. It appends none for the others.
var compressionOf = map[string]nix.Compression{
	".xz": nix.XZ, ".bz2": nix.Bzip2, ".zst": nix.Zstd, ".lzip": nix.Lzip, ".lz4": nix.LZ4, ".br": nix.Brotli,
}

// cutLast cuts s around the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}
