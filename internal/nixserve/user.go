package nixserve

import (
	"errors"
	"firn/internal/logs"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
)

// A User is who a process is to run as.
type User struct {
	UID, GID int
	groups   []int
}

// FindUser finds a user and a group, each by name or number. Without a group it is the groups of that user, without a user it is the one that this process has.
// It is nil if neither is given, or both are what this process is anyway. Only root can become another one.
func FindUser(name, group string) (*User, error) {
	u := &User{UID: os.Geteuid(), GID: os.Getegid()}
	if name != "" {
		if err := u.find(name, group != ""); err != nil {
			return nil, fmt.Errorf("find user %s: %w", name, err)
		}
	}
	if group != "" {
		gid, err := findGroup(group)
		if err != nil {
			return nil, fmt.Errorf("find group %s: %w", group, err)
		}
		u.GID, u.groups = gid, []int{gid}
	}
	if u.UID == os.Geteuid() && u.GID == os.Getegid() && (name == "" || u.UID != 0) {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("become user %s, group %s: only root can do that; start it as root, or without --user and --group", orOurs(name), orOurs(group))
	}
	return u, nil
}

func orOurs(name string) string {
	if name == "" {
		return "as it is"
	}
	return name
}

func (u *User) find(name string, hasGroup bool) error {
	found, err := user.Lookup(name)
	if uid, nerr := strconv.Atoi(name); err != nil && nerr == nil && uid >= 0 {
		found, err = user.LookupId(name)
		if errors.As(err, new(user.UnknownUserIdError)) && hasGroup {
			u.UID = uid // it needs no name
			return nil
		}
	}
	if err != nil {
		return err
	}
	ids, err := found.GroupIds()
	if err != nil {
		return err
	}
	numbers := []*int{&u.UID, &u.GID}
	for i, text := range append([]string{found.Uid, found.Gid}, ids...) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		if i < len(numbers) {
			*numbers[i] = n
		} else {
			u.groups = append(u.groups, n)
		}
	}
	return nil
}

func findGroup(name string) (int, error) {
	found, err := user.LookupGroup(name)
	if err == nil {
		return strconv.Atoi(found.Gid)
	}
	if gid, nerr := strconv.Atoi(name); nerr == nil && gid >= 0 {
		return gid, nil
	}
	return 0, err
}

// Assume makes this process that of the user, for good: on all of its threads, as Go sees to.
// What is open stays open. Linux lets no other process of this user look into one that was root.
func (u *User) Assume() error {
	if u == nil {
		return nil
	}
	groups := u.groups
	if len(groups) == 0 {
		groups = []int{u.GID}
	}
	for _, step := range []struct {
		what string
		err  func() error
	}{
		{"set groups", func() error { return syscall.Setgroups(groups) }},
		{"set group", func() error { return syscall.Setgid(u.GID) }},
		{"set user", func() error { return syscall.Setuid(u.UID) }},
	} {
		if err := step.err(); err != nil {
			return fmt.Errorf("become user %d, group %d: %s: %w", u.UID, u.GID, step.what, err)
		}
	}
	got, err := syscall.Getgroups()
	switch {
	case err != nil:
		return fmt.Errorf("become user %d: %w", u.UID, err)
	case os.Getuid() != u.UID, os.Geteuid() != u.UID, os.Getgid() != u.GID, os.Getegid() != u.GID, !sameGroups(got, groups):
		return fmt.Errorf("become user %d, group %d: it is still user %d, group %d", u.UID, u.GID, os.Geteuid(), os.Getegid())
	case u.UID != 0 && syscall.Setuid(0) == nil:
		return fmt.Errorf("become user %d: it could still become root again", u.UID)
	}
	return nil
}

func sameGroups(a, b []int) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// openLog opens a log that the user may write to.
func (u *User) openLog(path string) (*logs.File, error) {
	if u == nil {
		return logs.Open(path)
	}
	return logs.OpenFor(path, u.UID, u.GID)
}
