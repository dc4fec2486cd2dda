package chunk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// window is how many bytes a fingerprint is of: each byte is shifted by one bit for every one behind it,
// and is out after as many as the fingerprint has bits.
const window = 64

// gear has a random number for each byte: the first 8 bytes, little-endian,
// of the SHA-256 of the text "firn gear N", with N the byte in decimal.
var gear = func() (table [256]uint64) {
	for i := range table {
		sum := sha256.Sum256(fmt.Appendf(nil, "firn gear %d", i))
		table[i] = binary.LittleEndian.Uint64(sum[:])
	}
	return table
}()

// fastCDC returns the length of the chunk that b begins with, judged by b alone; 0 if it does not end within b.
// It takes up where it was when b was shorter.
//
// A chunk ends after the first byte, of those from the minimum size on, at which the fingerprint of the last 64 bytes has
// enough zero bits at its top: more are asked for before the normal size than after it.
func (c *Cutter) fastCDC(b []byte) int {
	// The bytes before the minimum are in fingerprints only.
	if c.roll(b, c.minimum-1, 0) || c.roll(b, c.normal-1, c.smallBelow) || c.roll(b, c.most, c.largeBelow) {
		return c.hashed
	}
	return 0
}

// roll takes bytes into the fingerprint until c.hashed is end, and reports whether it stopped before
// because the fingerprint is below the limit.
func (c *Cutter) roll(b []byte, end int, limit uint64) bool {
	i, end := c.hashed, min(end, len(b))
	if i >= end {
		return false
	}
	h := c.fingerprint
	for ; i < end; i++ {
		h = h<<1 + gear[b[i]]
		if h < limit {
			c.fingerprint, c.hashed = h, i+1
			return true
		}
	}
	c.fingerprint, c.hashed = h, i
	return false
}
