package logs

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// example is a request of which nothing is missing.
func example() *Request {
	return &Request{
		Time:   time.Date(2026, 11, 26, 7, 8, 9, 123456789, time.FixedZone("", 3600)),
		Remote: "192.0.2.1", User: "ci laptop", Method: "GET", URI: "/nix-cache-info", Proto: "HTTP/1.1", Status: 200, Bytes: 51,
		Referer: "http://cache.example.org/", Agent: "curl/8.0 Nix/2.34", Host: "cache.example.org", Route: "nix-cache-info", Cache: "main",
		Duration: 1500 * time.Microsecond, Aborted: "client",
	}
}

func TestFormats(t *testing.T) {
	for _, test := range []struct {
		format  Format
		request *Request
		want    string
	}{
		{Combined, example(), `192.0.2.1 - ci\x20laptop [26/Nov/2026:07:08:09 +0100] "GET /nix-cache-info HTTP/1.1" 200 51 ` +
			`"http://cache.example.org/" "curl/8.0 Nix/2.34"` + "\n"},
		{Combined, &Request{Method: "GET", URI: "/", Proto: "HTTP/1.0", Status: 404}, `- - - [01/Jan/0001:00:00:00 +0000] "GET / HTTP/1.0" 404 0 "-" "-"` + "\n"},
		{JSON, example(), `{"time":"2026-11-26T07:08:09.123+01:00","remote":"192.0.2.1","user":"ci laptop","method":"GET","uri":"/nix-cache-info",` +
			`"proto":"HTTP/1.1","host":"cache.example.org","cache":"main","route":"nix-cache-info","referer":"http://cache.example.org/",` +
			`"agent":"curl/8.0 Nix/2.34","aborted":"client","status":200,"bytes":51,"seconds":0.001500}` + "\n"},
		{JSON, &Request{Method: "GET", URI: "/", Proto: "HTTP/1.0", Status: 404},
			`{"time":"0001-01-01T00:00:00.000Z","method":"GET","uri":"/","proto":"HTTP/1.0","status":404,"bytes":0,"seconds":0.000000}` + "\n"},
	} {
		if diff := cmp.Diff(test.want, string(test.format.appendTo(nil, test.request))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.format, diff)
		}
	}
}

// Whatever a client sends stays within its field, and is nothing to a terminal.
func FuzzFormats(f *testing.F) {
	for _, s := range []string{
		"", "plain", "a\"b\\", "\n127.0.0.1 - admin [now] \"GET / HTTP/1.1\" 200", "\r\x00\x1b[2J\x7f", "\xff\xfe", "é\u0085\u009b31m\u2028\U0001f9ca", strings.Repeat("x", 3000),
		strings.Repeat("é", 3000),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := &Request{Remote: s, User: s, Method: s, URI: s, Proto: "HTTP/1.1", Status: 200, Referer: s, Agent: s, Host: s, Cache: s}
		combined := Combined.appendTo(nil, r)
		text, one := bytes.CutSuffix(combined, []byte("\n"))
		if i := bytes.IndexFunc(text, func(c rune) bool { return c < ' ' || c >= 0x7f }); i >= 0 || !one {
			t.Fatalf("byte %d of %q", i, combined)
		}
		// Words before the date, and quoted strings after it, are as many as ever.
		before, after, ok := bytes.Cut(text, []byte(" [01/Jan/0001:00:00:00 +0000] "))
		if !ok || bytes.Count(before, []byte(" ")) != 2 {
			t.Fatalf("words before the date in %q", combined)
		}
		unescaped := strings.NewReplacer(`\\`, "", `\"`, "").Replace(string(after))
		if n := strings.Count(unescaped, `"`); n != 6 {
			t.Fatalf("%d quotes in %q", n, combined)
		}
		if request, _, _ := strings.Cut(unescaped[1:], `"`); strings.Count(request, " ") != 2 {
			t.Fatalf("the request is no three words in %q", combined)
		}

		line := JSON.appendTo(nil, r)
		if bytes.Count(line, []byte("\n")) != 1 || bytes.ContainsFunc(line[:len(line)-1], func(c rune) bool { return c < ' ' || c >= 0x7f }) {
			t.Fatalf("%q", line)
		}
		var got struct{ URI, Agent string }
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); len(s) <= maxField && strings.ReplaceAll(got.URI, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
			t.Fatalf("%q became %q", s, got.URI)
		}
	})
}

func BenchmarkFormats(b *testing.B) {
	for _, f := range []Format{Combined, JSON} {
		b.Run(string(f), func(b *testing.B) {
			r, buf := example(), []byte(nil)
			b.ReportAllocs()
			for b.Loop() {
				buf = f.appendTo(buf[:0], r)
			}
		})
	}
}
