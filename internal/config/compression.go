package config

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"
)

// Compression is the form in which NARs are served.
type Compression string

const (
	CompressionNone Compression = "none"
	CompressionZstd Compression = "zstd"
)

// UnmarshalText reads a form by its name.
func (c *Compression) UnmarshalText(text []byte) error {
	return oneOf(c, text, CompressionNone, CompressionZstd)
}

// Level is a compression level of zstd.
type Level uint8

// UnmarshalText reads a decimal number.
func (l *Level) UnmarshalText(text []byte) error { return number(l, text, 1, 22) }

// DepotLevel is a compression level of zstd for what is kept.
type DepotLevel uint8

// UnmarshalText reads a decimal number.
func (l *DepotLevel) UnmarshalText(text []byte) error { return number(l, text, 1, 12) }

// minSize is the least that a Size may be, in bytes: of a cache of compressed NARs, half of it is what one NAR can take while it is
// being compressed; as the size of a NAR, less would keep out a compiler.
const minSize = 64 << 20

// Size is an amount of bytes, as a person writes it: 10GiB, 500MB.
type Size string

// UnmarshalText reads a number with a unit, or of bytes without one.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	switch {
	case err != nil || n > math.MaxInt64:
		return fmt.Errorf("%q is not a size such as 10GiB or 500MB", text)
	case n < minSize:
		return fmt.Errorf("%s is less than %s", text, humanize.IBytes(minSize))
	}
	*s = Size(text)
	return nil
}

// Bytes returns the size in bytes.
func (s Size) Bytes() int64 {
	n, err := humanize.ParseBytes(string(s))
	if err != nil {
		return 0 // not set
	}
	return int64(n)
}
