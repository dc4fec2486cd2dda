package server

import "strings"

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
	routes int = iota
)

// routeNames are the routes in metrics and logs.
var routeNames = [routes]string{
	"other", "page", "nix-cache-info", "narinfo", "nar", "nar.zst", "ls", "log", "realisation", "build-trace", "debuginfo",
	"version", "health", "metrics", "robots",
}

func (r route) String() string { return routeNames[r] }

// target is what a URL asks for: the route, and the part of the path that names one thing of that kind,
// which is not checked yet.
type target struct {
	route route
	name  string
}

// parseTarget splits the decoded path of a URL, relative to the root of the cache.
// Of several slashes in a row one counts, as clients join URLs carelessly.
//
//	/<path hash>.narinfo                     routeNARInfo      <path hash>
//	/<path hash>.ls                          routeListing      <path hash>
//	/nar/<name>.nar                          routeNAR          <name>
//	/nar/<name>.nar.zst                      routeZstdNAR      <name>
//	/log/<derivation>                        routeLog          <derivation>
//	/realisations/<id>.doi                   routeRealisation  <id>
//	/build-trace-v2/<derivation>/<output>.doi  routeBuildTrace   <derivation>/<output>
//	/debuginfo/<build id>                    routeDebugInfo    <build id>
func parseTarget(path string) target {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	path = strings.TrimPrefix(path, "/")

	dir, rest, inDir := strings.Cut(path, "/")
	if !inDir {
		if name, ok := strings.CutSuffix(path, ".narinfo"); ok {
			return target{routeNARInfo, name}
		}
		if name, ok := strings.CutSuffix(path, ".ls"); ok {
			return target{routeListing, name}
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
		if name, ok := strings.CutSuffix(rest, ".nar"); ok {
			return target{routeNAR, name}
		}
		if name, ok := strings.CutSuffix(rest, ".nar.zst"); ok {
			return target{routeZstdNAR, name}
		}
	case "log":
		return target{routeLog, rest}
	case "realisations":
		if id, ok := strings.CutSuffix(rest, ".doi"); ok {
			return target{routeRealisation, id}
		}
	case "build-trace-v2":
		if name, ok := strings.CutSuffix(rest, ".doi"); ok {
			return target{routeBuildTrace, name}
		}
	case "debuginfo":
		return target{routeDebugInfo, rest}
	}
	return target{}
}
