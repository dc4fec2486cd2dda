package logs

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// A Request is the record of one request, which is logged when its answer has ended.
type Request struct {
	Time     time.Time // when it began
	Remote   string    // address of the client; "" if it has none
	User     string    // name of the token; "" if none was looked at
	Method   string
	URI      string // without secrets, which the caller removes
	Proto    string // HTTP/1.1
	Status   int
	Bytes    int64 // of the body that were sent
	Referer  string
	Agent    string
	Host     string
	Route    string // what was asked for, in the words of the metrics
	Cache    string // "" if it was asked of none
	Duration time.Duration
	Aborted  string // which side broke off the answer; "" if it is whole
}

// A Format is how a request is written.
type Format string

const (
	// Combined is the format of Apache and nginx that all tools for logs read.
	Combined Format = "combined"
	// JSON is one object a line.
	JSON Format = "json"
)

// maxField bounds a field that the client chose, in bytes.
const maxField = 2 << 10

// appendTo appends the line of r.
func (f Format) appendTo(b []byte, r *Request) []byte {
	if f == JSON {
		return r.appendJSON(b)
	}
	return r.appendCombined(b)
}

func (r *Request) appendCombined(b []byte) []byte {
	b = appendWord(b, r.Remote)
	b = append(b, " - "...)
	b = appendWord(b, r.User)
	b = r.Time.AppendFormat(b, " [02/Jan/2006:15:04:05 -0700] \"")
	b = appendEscaped(b, r.Method, ' ')
	b = append(b, ' ')
	b = appendEscaped(b, r.URI, ' ')
	b = append(b, ' ')
	b = append(b, r.Proto...)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, r.Bytes, 10)
	b = append(b, ` "`...)
	b = appendEscaped(b, orDash(r.Referer), 0)
	b = append(b, `" "`...)
	b = appendEscaped(b, orDash(r.Agent), 0)
	return append(b, "\"\n"...)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendWord appends s as one word, for programs that split the line at spaces.
func appendWord(b []byte, s string) []byte { return appendEscaped(b, orDash(s), ' ') }

// appendEscaped appends s as Apache does, so that it can end neither the quotes around it nor the line, nor
// control a terminal. also is one more byte to escape; 0 is none, as that is escaped in any case.
func appendEscaped(b []byte, s string, also byte) []byte {
	s, cut := bounded(s)
	for s != "" {
		plain := 0
		for plain < len(s) && isPlain(s[plain]) && s[plain] != also {
			plain++
		}
		b = append(b, s[:plain]...)
		if plain == len(s) {
			break
		}
		switch c := s[plain]; c {
		case '"', '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&0xf])
		}
		s = s[plain+1:]
	}
	return append(b, cut...)
}

// isPlain reports whether a byte is printable ASCII without a meaning within quotes.
func isPlain(c byte) bool { return ' ' <= c && c < 0x7f && c != '"' && c != '\\' }

const hexDigits = "0123456789abcdef"

// bounded cuts a text that is too long, and returns what stands for the rest.
func bounded(s string) (start, cut string) {
	if len(s) <= maxField {
		return s, ""
	}
	return s[:maxField], "..."
}

func (r *Request) appendJSON(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, '"')
	for _, f := range [...]struct{ name, value string }{
		{"remote", r.Remote}, {"user", r.User}, {"method", r.Method}, {"uri", r.URI}, {"proto", r.Proto}, {"host", r.Host},
		{"cache", r.Cache}, {"route", r.Route}, {"referer", r.Referer}, {"agent", r.Agent}, {"aborted", r.Aborted},
	} {
		if f.value != "" {
			b = append(b, ',', '"')
			b = append(b, f.name...)
			b = append(b, `":"`...)
			b = appendJSONText(b, f.value)
			b = append(b, '"')
		}
	}
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, `,"bytes":`...)
	b = strconv.AppendInt(b, r.Bytes, 10)
	b = append(b, `,"seconds":`...)
	b = strconv.AppendFloat(b, r.Duration.Seconds(), 'f', 6, 64)
	return append(b, "}\n"...)
}

// appendJSONText appends the inside of a JSON string. All but printable ASCII is escaped, as a terminal may
// take other characters for commands; bytes that are no UTF-8 become U+FFFD.
func appendJSONText(b []byte, s string) []byte {
	s, cut := bounded(s)
	for _, c := range s {
		switch {
		case c < utf8.RuneSelf && isPlain(byte(c)):
			b = append(b, byte(c))
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c < 0x10000:
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			high, low := utf16.EncodeRune(c)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		}
	}
	return append(b, cut...)
}
