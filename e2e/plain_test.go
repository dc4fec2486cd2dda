package e2e

import (
	"strings"
	"testing"
	"time"
)

// If the server demands HTTPS, a push over plain HTTP ends at once, with the URL to use as the last
// that the client says, whatever the size of what is pushed.
func TestPushOverPlainHTTP(t *testing.T) {
	t.Parallel()
	host := newMachine(t, systemNix())
	cert := selfSigned(host, "server", "localhost,IP:127.0.0.1")
	plain, secure := "127.0.0.1:"+freePort(t), "127.0.0.1:"+freePort(t)
	s := startDepot(host, "--listen", plain, "--https", secure, "--plain-http", "redirect",
		"--tls-cert", cert, "--tls-key", strings.TrimSuffix(cert, "crt")+"key")
	token := newToken(host, "ci", "--push", "main")
	if want := "https://" + secure + "\n"; !strings.Contains(s.announced, want) {
		t.Errorf("announced is\n%swant %s", s.announced, want)
	}
	eachNix(t, func(t *testing.T, n nixSystem) {
		client := newMachine(t, n)
		login(client, token)
		for _, size := range []int64{100, 8 << 20} {
			path := add(client, "file-"+strings.ReplaceAll(n.version, ".", "-"), size).String()
			push := func(to string) (string, error) {
				return client.try("env", "NIX_SSL_CERT_FILE="+cert, "nix", "copy", "--to", to+"?compression=none", path)
			}
			begun := time.Now()
			_, err := push("http://" + plain)
			if err == nil {
				t.Fatalf("%d bytes were pushed over plain HTTP", size)
			}
			text := lines(err.Error())
			last := text[len(text)-1]
			if !n.isOld() && !strings.Contains(last, "push to https://"+secure+"; the token was sent in the clear") {
				t.Errorf("the last line is %q of\n%s", last, err)
			}
			if !strings.Contains(err.Error(), "HTTP error 403") && !strings.Contains(err.Error(), "(HTTP 403)") || strings.Contains(err.Error(), "retrying") {
				t.Errorf("it says\n%s", err)
			}
			if took := time.Since(begun); took > time.Minute {
				t.Errorf("it took %s to be refused", took)
			}
			if _, err := push("https://" + secure); err != nil {
				t.Error(err)
			}
		}
	})
}
