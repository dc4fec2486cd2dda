package nix

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// nix32Digits is the alphabet of Nix's base 32: no e, o, t, u.
const nix32Digits = "0123456789abcdfghijklmnpqrsvwxyz"

// notDigit marks the bytes that are no digit in nix32Values.
const notDigit = 0xff

// nix32Values maps a byte to the value of that digit.
var nix32Values = func() (values [256]byte) {
	for i := range values {
		values[i] = notDigit
	}
	for i := range len(nix32Digits) {
		values[nix32Digits[i]] = byte(i)
	}
	return values
}()

// nix32Len returns how many digits n bytes take.
func nix32Len(n int) int { return (n*8 + 4) / 5 }

// AppendNix32 appends src in Nix's base 32, and returns the extended slice.
// The bytes are one little-endian number, written with its highest digit first.
func AppendNix32(dst, src []byte) []byte {
	n := nix32Len(len(src))
	dst = slices.Grow(dst, n)[:len(dst)+n]
	at, acc, bits := len(dst), uint(0), 0
	for _, b := range src {
		acc |= uint(b) << bits
		for bits += 8; bits >= 5; bits -= 5 {
			at--
			dst[at] = nix32Digits[acc&31]
			acc >>= 5
		}
	}
	if bits > 0 {
		dst[at-1] = nix32Digits[acc]
	}
	return dst
}

// DecodeNix32 returns the bytes whose base 32 form is s.
// Any bytes have one text only: a length that no number of bytes has,
// and a highest digit with bits to spare, are errors.
func DecodeNix32(s string) ([]byte, error) {
	out := make([]byte, len(s)*5/8)
	if err := decodeNix32(out, s); err != nil {
		return nil, err
	}
	return out, nil
}

var (
	errNix32Length  = errors.New("base 32 text has an impossible length")
	errNix32Surplus = errors.New("base 32 text has bits to spare that are not zero")
)

// decodeNix32 fills dst with the bytes of s, which must be exactly as long as they take.
func decodeNix32(dst []byte, s string) error {
	if len(s) != nix32Len(len(dst)) {
		return errNix32Length
	}
	at, acc, bits := 0, uint(0), 0
	for i := len(s) - 1; i >= 0; i-- {
		v := nix32Values[s[i]]
		if v == notDigit {
			return fmt.Errorf("%q is no digit of base 32", s[i])
		}
		acc |= uint(v) << bits
		if bits += 5; bits >= 8 {
			dst[at] = byte(acc)
			at++
			acc >>= 8
			bits -= 8
		}
	}
	if acc != 0 {
		return errNix32Surplus
	}
	return nil
}

var errNotText = errors.New("it has control characters or is not UTF-8")

// checkText checks that s may be part of a line of text.
func checkText(s string) error {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, isControl) {
		return errNotText
	}
	return nil
}

// isControl reports whether r would break a line of text, or hide in it.
func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// maxQuoted is how many bytes of a refused text an error shows.
const maxQuoted = 300

// quote returns s for an error message: quoted, and cut when it is long.
func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
