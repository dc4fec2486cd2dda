package protocol

import "firn/nix"

// coming is what a client has yet to send of what it copies.
//
// It waits for an answer to each path, and that of all but the last can come while the path is still being kept, since it does not end well
// without the last one. Which that is can be told from what it asked at first: which paths of all that it copies are there.
type coming struct {
	missing map[nix.StorePath]bool // of those that it asked for last
	sent    map[nix.StorePath]bool // that may not be published yet
}

func (c *coming) asked(paths, valid []nix.StorePath) {
	c.missing = make(map[nix.StorePath]bool, len(paths))
	for _, p := range paths {
		c.missing[p] = true
	}
	for _, p := range valid {
		delete(c.missing, p)
	}
}

// read notes that a path was read, and reports whether it has to be published before the answer: others need not follow.
func (c *coming) read(p nix.StorePath) bool {
	if !c.missing[p] {
		return true
	}
	delete(c.missing, p)
	if c.sent == nil {
		c.sent = map[nix.StorePath]bool{}
	}
	c.sent[p] = true
	return len(c.missing) == 0
}

// gone notes that a path will not come, and reports whether it was the last one.
func (c *coming) gone(p nix.StorePath) bool {
	if !c.missing[p] {
		return false
	}
	delete(c.missing, p)
	return len(c.missing) == 0
}
