package remote

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Who asks is told to the host of the cache, and to no other that it redirects to.
func TestRedirects(t *testing.T) {
	var asked []string
	note := func(who string, next http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, ok := r.BasicAuth(); ok {
				who += " " + password
			}
			asked = append(asked, who)
			next(w, r)
		})
	}
	other := httptest.NewServer(note("other", func(http.ResponseWriter, *http.Request) {}))
	defer other.Close()
	// Only in name is it another host, and one below the first: the client itself would go on telling it.
	below := strings.Replace(other.URL, "127.0.0.1", "below.localhost", 1)
	first := httptest.NewServer(note("first", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, below, http.StatusFound) }))
	defer first.Close()
	u, err := url.Parse(strings.Replace(first.URL, "://127.0.0.1", "://me:secret@localhost", 1))
	if err != nil {
		t.Fatal(err)
	}
	site, err := ParseSite(u, "")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) { // which names need not be known for
		if strings.HasPrefix(r.URL.Host, "below.") {
			return url.Parse(other.URL)
		}
		return url.Parse(first.URL)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: CheckRedirect}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, site.Base.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	site.Authorize(r)
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := strings.Join(asked, ", "); got != "first secret, other" {
		t.Errorf("asked were: %s", got)
	}
}
