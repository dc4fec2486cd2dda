// Package conversation records what Nix and a cache say to each other, as text that a person can read, and says it again.
//
//	# nix copy --to ssh://main@127.0.0.1 /nix/store/…
//	$ nix-store --serve --write
//	> 0x390c9deb
//	> 519
//	< 0x5452eecb
//
// Lines with > are from the client and lines with < from the server: an integer of 8 bytes, a string with its length and padding, or bytes as they are.
// The first line says what the client was for, and the second what it asked the SSH server to run.
package conversation

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// A Conversation is what was said, from beginning to end.
type Conversation struct {
	Title   string // what the client was for
	Command string // what it asked the SSH server to run
	Turns   []Turn
	Error   string // that the client was shown at the end; empty: none
}

// A Turn is what one of both said until the other did.
type Turn struct {
	Client bool
	Bytes  []byte
}

// Said returns all that one of both said.
func (c *Conversation) Said(client bool) []byte {
	var all []byte
	for _, t := range c.Turns {
		if t.Client == client {
			all = append(all, t.Bytes...)
		}
	}
	return all
}

// add adds what one of both said.
func (c *Conversation) add(client bool, said []byte) {
	if n := len(c.Turns); n > 0 && c.Turns[n-1].Client == client {
		c.Turns[n-1].Bytes = append(c.Turns[n-1].Bytes, said...)
		return
	}
	c.Turns = append(c.Turns, Turn{client, bytes.Clone(said)})
}

// Marks of lines.
const (
	markTitle   = "# "
	markCommand = "$ "
	markClient  = "> "
	markServer  = "< "
	markError   = "! "
	raw         = "bytes " // before a string that is only its bytes
)

// Format writes a conversation down.
func Format(c *Conversation) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s\n%s%s\n", markTitle, c.Title, markCommand, c.Command)
	for _, t := range c.Turns {
		for _, line := range Lines(t.Bytes) {
			if t.Client {
				b.WriteString(markClient)
			} else {
				b.WriteString(markServer)
			}
			b.WriteString(line + "\n")
		}
	}
	if c.Error != "" {
		fmt.Fprintf(&b, "%s%q\n", markError, c.Error)
	}
	return b.Bytes()
}

// Parse reads what Format has written.
func Parse(text []byte) (*Conversation, error) {
	c := &Conversation{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if len(line) < len(markTitle) {
			return nil, fmt.Errorf("line %d: %q", i+1, line)
		}
		mark, rest := line[:len(markTitle)], line[len(markTitle):]
		switch mark {
		case markTitle:
			c.Title = rest
		case markCommand:
			c.Command = rest
		case markError:
			var err error
			if c.Error, err = strconv.Unquote(rest); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
		case markClient, markServer:
			said, err := parseLine(rest)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			c.add(mark == markClient, said)
		default:
			return nil, fmt.Errorf("line %d: %q", i+1, line)
		}
	}
	return c, nil
}

const (
	word       = 8        // bytes of an integer
	longest    = 64 << 10 // bytes of a string that is shown as one
	magicBegin = 1 << 24  // from this on an integer is shown in hexadecimal: it is a sign rather than a number
)

// Lines shows bytes in the units of the protocols. Which these are is guessed, for it needs all of a protocol to know;
// but a line says in any case which bytes it is.
func Lines(b []byte) []string {
	var lines []string
	for len(b) >= word {
		n := binary.LittleEndian.Uint64(b)
		if text, size := stringAt(b, n); size > 0 && !isCount(b[word:]) {
			lines = append(lines, strconv.Quote(text))
			b = b[size:]
			continue
		}
		if n >= magicBegin {
			lines = append(lines, fmt.Sprintf("%#x", n))
		} else {
			lines = append(lines, strconv.FormatUint(n, 10))
		}
		b = b[word:]
	}
	if len(b) > 0 {
		lines = append(lines, raw+strconv.Quote(string(b)))
	}
	return lines
}

// stringAt returns the string of n bytes at the beginning of b, if it looks like one, and how many bytes it takes in all.
func stringAt(b []byte, n uint64) (text string, size int) {
	if n == 0 || n > longest {
		return "", 0
	}
	size = word + int(n) + -int(n)&(word-1)
	if size > len(b) || len(bytes.Trim(b[word+n:size], "\x00")) > 0 {
		return "", 0
	}
	for _, c := range b[word : word+n] {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' {
			return "", 0
		}
	}
	return string(b[word : word+n]), size
}

// isCount reports whether b begins with a string, so that an integer before it is how many there are, rather than the length of one.
func isCount(b []byte) bool {
	if len(b) < word {
		return false
	}
	_, size := stringAt(b, binary.LittleEndian.Uint64(b))
	return size > 0
}

func parseLine(line string) ([]byte, error) {
	if text, ok := strings.CutPrefix(line, raw); ok {
		s, err := strconv.Unquote(text)
		return []byte(s), err
	}
	if strings.HasPrefix(line, `"`) {
		s, err := strconv.Unquote(line)
		if err != nil {
			return nil, err
		}
		b := binary.LittleEndian.AppendUint64(nil, uint64(len(s)))
		return append(append(b, s...), make([]byte, -len(s)&(word-1))...), nil
	}
	n, err := strconv.ParseUint(line, 0, 64)
	return binary.LittleEndian.AppendUint64(nil, n), err
}
