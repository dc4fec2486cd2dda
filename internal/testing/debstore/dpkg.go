package debstore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// maxPackage is the size in KiB of the largest package that is taken: some machines have one or two that are larger than
// all others together, and stores made on different machines shall compare.
const maxPackage = 300_000

// debianPackage is an installed package.
type debianPackage struct {
	name    string // without architecture
	arch    string
	version string
	files   []string // absolute, without directories, sorted
	depends []*debianPackage
}

// installed returns the installed packages of up to maxPackage, sorted by name, with their files and dependencies.
func installed(ctx context.Context) ([]*debianPackage, error) {
	const format = "${Package}\t${Architecture}\t${Version}\t${db:Status-Status}\t${Installed-Size}\t" +
		"${Pre-Depends}, ${Depends}\t${Provides}\n"
	out, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat", format).Output()
	if err != nil {
		return nil, fmt.Errorf("list Debian packages: %w", err)
	}
	packages, err := parsePackages(string(out))
	if err != nil {
		return nil, err
	}
	args := []string{"--listfiles"}
	for _, p := range packages {
		args = append(args, p.name+":"+p.arch)
	}
	if out, err = exec.CommandContext(ctx, "dpkg-query", args...).Output(); err != nil {
		return nil, fmt.Errorf("list files of Debian packages: %w", err)
	}
	// One block of lines for each package, in the order that they were asked in.
	blocks := strings.Split(string(out), "\n\n")
	if len(blocks) != len(packages) {
		return nil, fmt.Errorf("list files of Debian packages: %d lists for %d packages", len(blocks), len(packages))
	}
	for i, p := range packages {
		p.files = onlyFiles(strings.Split(blocks[i], "\n"))
	}
	return packages, nil
}

// parsePackages parses lines of name, architecture, version, status, size in KiB, dependencies and what is provided.
func parsePackages(text string) ([]*debianPackage, error) {
	var packages []*debianPackage
	dependsText := map[*debianPackage]string{}
	byName := map[string]*debianPackage{} // and by what they provide
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 7 {
			return nil, fmt.Errorf("list Debian packages: unexpected line %q", line)
		}
		// The size is a claim of the package, and not every package makes it.
		if size, _ := strconv.ParseInt(f[4], 10, 64); f[3] != "installed" || size > maxPackage {
			continue
		}
		p := &debianPackage{name: f[0], arch: f[1], version: f[2]}
		packages = append(packages, p)
		dependsText[p] = f[5]
		byName[p.name] = p
		for provided := range strings.SplitSeq(f[6], ",") {
			if name := packageName(provided); byName[name] == nil {
				byName[name] = p
			}
		}
	}
	for _, p := range packages {
		for group := range strings.SplitSeq(dependsText[p], ",") {
			for alternative := range strings.SplitSeq(group, "|") {
				d := byName[packageName(alternative)]
				if d == nil {
					continue
				}
				if d != p && !slices.Contains(p.depends, d) {
					p.depends = append(p.depends, d)
				}
				break
			}
		}
	}
	slices.SortFunc(packages, func(a, b *debianPackage) int { return strings.Compare(a.name+a.arch, b.name+b.arch) })
	cutCycles(packages)
	return packages, nil
}

// packageName returns the name in one alternative of a dependency, such as "libc6:amd64 (>= 2.14)".
func packageName(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), " ")
	s, _, _ = strings.Cut(s, ":")
	return s
}

// cutCycles drops the dependencies that close a cycle: Debian has some, a Nix store has none.
func cutCycles(packages []*debianPackage) {
	const open, done = 1, 2
	state := map[*debianPackage]int{}
	var visit func(p *debianPackage)
	visit = func(p *debianPackage) {
		state[p] = open
		p.depends = slices.DeleteFunc(p.depends, func(d *debianPackage) bool {
			if state[d] == 0 {
				visit(d)
			}
			return state[d] == open
		})
		state[p] = done
	}
	for _, p := range packages {
		if state[p] == 0 {
			visit(p)
		}
	}
}

// some returns the first packages and all that they depend on, in the order given, until there are n.
func some(packages []*debianPackage, n int) []*debianPackage {
	taken := map[*debianPackage]bool{}
	var take func(p *debianPackage)
	take = func(p *debianPackage) {
		if !taken[p] {
			taken[p] = true
			for _, d := range p.depends {
				take(d)
			}
		}
	}
	for _, p := range packages {
		if len(taken) < n {
			take(p)
		}
	}
	return slices.DeleteFunc(slices.Clone(packages), func(p *debianPackage) bool { return !taken[p] })
}

// onlyFiles returns the lines that name a regular file or a symlink that is still there and that everybody may read,
// for so is a store. Directories are listed too, also where this machine has a symlink instead
// (/bin and /usr/bin), and so are remarks about diversions.
func onlyFiles(lines []string) []string {
	slices.Sort(lines)
	var files []string
	for i, name := range lines {
		if !strings.HasPrefix(name, "/") || i+1 < len(lines) && strings.HasPrefix(lines[i+1], name+"/") {
			continue
		}
		info, err := os.Lstat(name)
		switch {
		case err != nil: // removed by hand, or left out by dpkg's path-exclude
		case info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0, info.Mode().Type() == os.ModeSymlink:
			files = append(files, name)
		}
	}
	return files
}
