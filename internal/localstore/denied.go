package localstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Permission bits.
const (
	mayEnter fs.FileMode = 1
	mayWrite fs.FileMode = 2
	mayRead  fs.FileMode = 4
)

// A deniedError says which permission this process lacks, and what gives it.
type deniedError struct {
	what, advice string
	cause        error
}

func (e *deniedError) Error() string {
	return fmt.Sprintf("permission denied: %s: %s", e.what, e.advice)
}
func (e *deniedError) Unwrap() error { return e.cause }

// explainDenied returns an error that says what to do, where err says that this process lacks a
// permission to use path: the one that need names, or that to enter a directory above it.
func explainDenied(err error, path string, need fs.FileMode) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// The last one on the way that can be looked at is the one that keeps from looking further.
	at := "/"
	info, serr := os.Stat(at)
	for _, name := range strings.Split(filepath.Clean(path), "/")[1:] {
		next := filepath.Join(at, name)
		i, err := os.Stat(next)
		if err != nil {
			need = mayEnter
			break
		}
		at, info, serr = next, i, err
	}
	if serr != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return err
	}
	if info.Mode().Perm()&(need<<3) != 0 && stat.Gid != 0 {
		group := strconv.Itoa(int(stat.Gid))
		if g, err := user.LookupGroupId(group); err == nil {
			group = g.Name
		}
		return &deniedError{fmt.Sprintf("%s is for the group %s", at, group), joinGroup(group), err}
	}
	letter := map[fs.FileMode]string{mayEnter: "x", mayWrite: "w", mayRead: "r"}[need]
	return &deniedError{fmt.Sprintf("%s (%v) is not for the user %s", at, info.Mode(), userName()), fmt.Sprintf("chmod o+%s %s", letter, at), err}
}

// joinGroup is how the user of this process gets into a group.
func joinGroup(group string) string {
	_, listed := currentUser()
	switch _, err := os.Stat("/etc/debian_version"); {
	case !listed:
		return fmt.Sprintf("add SupplementaryGroups=%s to [Service] in the unit of firn, and restart firn", group)
	case err == nil:
		return fmt.Sprintf("adduser %s %s, and restart firn", userName(), group)
	}
	return fmt.Sprintf("usermod --append --groups %s %s, and restart firn", group, userName())
}

// currentUser returns the name of the user that this process runs as. One that systemd has made up
// for a service is in no file, and listed is false.
func currentUser() (name string, listed bool) {
	me, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return fmt.Sprintf("number %d", os.Geteuid()), false
	}
	return me.Username, true
}

func userName() string {
	name, _ := currentUser()
	return name
}
