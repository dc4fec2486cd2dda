package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

// writeDeb writes the Debian package for an architecture, as nfpm.yaml describes it.
func (r *release) writeDeb(dist, arch string) error {
	version := debianVersion(r.version)
	changelog := fmt.Sprintf("firn (%s) unstable; urgency=medium\n\n  * What changed for users of firn is in changelog.gz.\n\n -- %s  %s\n",
		version, r.maintainer, r.date.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	if err := writeGzip(r.path("changelog.Debian.gz"), []byte(changelog)); err != nil {
		return err
	}
	f, err := os.Open("nfpm.yaml")
	if err != nil {
		return err
	}
	defer f.Close()
	config, err := nfpm.ParseWithEnvMapping(f, func(name string) string {
		return map[string]string{"ARCH": arch, "VERSION": version, "MAINTAINER": r.maintainer, "RELEASE": r.dir}[name]
	})
	if err != nil {
		return err
	}
	config.MTime = r.date
	if config.Scripts, err = r.writeScripts(); err != nil {
		return err
	}
	if err := config.Validate(); err != nil {
		return err
	}
	info, err := config.Get("deb")
	if err != nil {
		return err
	}
	// There is one package for each architecture, so that a pattern never matches an older one.
	older, err := filepath.Glob(filepath.Join(dist, "firn_*_"+arch+".deb"))
	if err != nil {
		return err
	}
	for _, path := range older {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return publish(filepath.Join(dist, deb.Default.ConventionalFileName(info)), func(f *os.File) error {
		return deb.Default.Package(info, f)
	})
}

// writeScripts writes what dpkg calls around the files, with the names of the sockets that systemd can hold for firn, and of the timers.
func (r *release) writeScripts() (nfpm.Scripts, error) {
	sockets, err := unitNames("socket")
	if err != nil {
		return nfpm.Scripts{}, err
	}
	timers, err := unitNames("timer")
	if err != nil {
		return nfpm.Scripts{}, err
	}
	names := strings.NewReplacer("@SOCKETS@", sockets, "@TIMERS@", timers)
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		text, err := os.ReadFile(filepath.Join("debian", name))
		if err != nil {
			return nfpm.Scripts{}, err
		}
		if err := os.WriteFile(r.path(name), []byte(names.Replace(string(text))), 0o755); err != nil {
			return nfpm.Scripts{}, err
		}
	}
	return nfpm.Scripts{PostInstall: r.path("postinst"), PreRemove: r.path("prerm"), PostRemove: r.path("postrm")}, nil
}

// unitNames returns the names of the units of a kind, with spaces between.
func unitNames(kind string) (string, error) {
	paths, err := filepath.Glob("systemd/*." + kind)
	if err != nil {
		return "", err
	}
	if len(paths) == 0 {
		return "", fmt.Errorf("there is no %s in systemd", kind)
	}
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	return strings.Join(paths, " "), nil
}

// debianVersion returns the version of the package of a version of firn. They sort alike: what comes
// before a release, as a commit after the one before it does, has a tilde.
func debianVersion(version string) string {
	if version == "devel" {
		return "0~devel-1"
	}
	version, meta, _ := strings.Cut(strings.TrimPrefix(version, "v"), "+")
	release, before, _ := strings.Cut(version, "-")
	dots := strings.NewReplacer("-", ".", "+", ".") // a hyphen begins the revision of the package
	if before != "" {
		release += "~" + dots.Replace(before)
	}
	if meta != "" {
		release += "+" + dots.Replace(meta)
	}
	return release + "-1"
}
