package blob

import "fmt"

// maxName is the length of the longest name, in bytes.
const maxName = 128

// CheckName returns an error if a Store takes no blob of that name.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || name[0] == '.' {
		return fmt.Errorf("name of a blob: %q is empty, too long or begins with a dot", name)
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.') {
			return fmt.Errorf("name of a blob: %q has characters other than a-z, 0-9, '-' and '.'", name)
		}
	}
	return nil
}
