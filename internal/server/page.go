package server

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html"
	"html/template"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

//go:embed page.js
var pageJS string

// newPage returns the template of the front page, and the policy that lets it run its own style and
// script and nothing else.
func newPage() (*template.Template, []string) {
	t := template.New("page").Funcs(template.FuncMap{
		"css": func() template.CSS { return template.CSS(pageCSS) },
		"js":  func() template.JS { return template.JS(pageJS) },
	})
	digest := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	policy := "default-src 'none'; img-src data:; style-src " + digest(pageCSS) + "; script-src " + digest(pageJS) +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return template.Must(t.Parse(pageHTML)), []string{policy}
}

// sshPort is the port of SSH where a URL has none.
const sshPort = 22

// servePage answers with the front page: a description of the cache, and the lines that a client needs.
func (s *Server) servePage(x *exchange) error {
	info := x.cache.Info()
	present, err := x.cache.Presence(x.r.Context())
	if err != nil {
		return err
	}
	data := struct {
		Name     string // "" at the root
		URL      string
		Host     string // of it, as a netrc file has it
		SSH      string // the URL over SSH; "" if there is none
		SSHPort  int    // of that; 0 if it is the usual one
		Root     string // of the server, relative to the page
		Private  bool
		Keeps    bool // what is pushed
		NoStore  bool // there is one to serve, once it is there
		StoreDir string
		Priority int
		Sources  []string
		Keys     []template.HTML
		Version  string
	}{
		URL:      s.shownURL(x.r),
		Private:  x.secret,
		Keeps:    x.cache.Keeps(),
		NoStore:  present.Missing,
		StoreDir: string(info.StoreDir),
		Priority: info.Priority,
		Sources:  present.Sources,
		Version:  s.version,
	}
	if name := x.target.cache; name != "" {
		data.Name, data.URL, data.Root = name, data.URL+"/"+name, "../"
	}
	if u, err := url.Parse(data.URL); err == nil {
		data.Host = u.Hostname()
		host := data.Host
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		if s.sshPort != 0 {
			data.SSH = "ssh-ng://" + x.cache.Name() + "@" + host
			if s.sshPort != sshPort {
				data.SSHPort = s.sshPort
			}
		}
	}
	for _, key := range x.cache.PublicKeys() {
		// Escaped here, as the template would make an entity of every plus, which is not needed.
		data.Keys = append(data.Keys, template.HTML(html.EscapeString(key.String())))
	}
	var text bytes.Buffer
	if err := s.page.Execute(&text, data); err != nil {
		return err
	}
	h := x.w.Header()
	h["Content-Security-Policy"] = s.policy
	h["Referrer-Policy"] = []string{"no-referrer"}
	// Never cached: it shows a URL made from the headers of this one request.
	return x.bytes(typeHTML, cacheNever, text.Bytes())
}

// redirect redirects from /NAME to /NAME/, to which the links of the front page are relative. A client
// that may not read the cache was refused before.
func (s *Server) redirect(x *exchange) error {
	h := x.w.Header()
	h["Location"] = []string{x.target.cache + "/"}
	return x.answer(http.StatusPermanentRedirect, typeText, cacheNever, []byte("its pages are below "+x.target.cache+"/\n"))
}

var (
	hostPattern   = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)
	prefixPattern = regexp.MustCompile(`^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){0,16}$`)
)

// shownURL returns the URL at which the client reached this cache, as the client says, or a trusted proxy.
// It is for showing only. A client may say anything, so only what is plainly a host or a path is
// repeated.
func (s *Server) shownURL(r *http.Request) string {
	o := s.originOf(r)
	host := "localhost"
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && hostPattern.MatchString(local.String()) {
		host = local.String()
	}
	for _, said := range []string{o.host, r.Host} {
		if hostPattern.MatchString(said) {
			host = said
			break
		}
	}
	return cmp.Or(o.scheme, "http") + "://" + host + o.prefix
}
