package e2e

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
)

// newBrowser starts Chromium with a window of a width in pixels. Whatever it complains of, such as a script that the policy of a page forbids, fails the test.
func newBrowser(t *testing.T, width int) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(width, 800)) // root has no sandbox
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	_, err := chromedp.CallBrowser(ctx, browser.SetPermission, browser.SetPermissionParams{
		Permission: &browser.PermissionDescriptor{Name: "clipboard-read"}, Setting: browser.PermissionSettingGranted,
	})
	if err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	var complaints sync.WaitGroup
	messages := chromedp.Console(ctx)
	complaints.Go(func() {
		for m, err := range messages {
			if err != nil {
				return // the browser has ended
			}
			t.Errorf("the browser says: %s: %s", m.Type, m.Text)
		}
	})
	t.Cleanup(complaints.Wait)
	t.Cleanup(cancel)
	return ctx
}

// The lines that a person copies from the front page are all that a client needs, also if a proxy has
// put the cache below a path of its own.
func TestFrontPage(t *testing.T) {
	t.Parallel()
	host := debianMachine(t)
	s := startFirn(host)
	path := debianPath(t, "bash").String()
	front := startNginx(t, tempDir(t), "location /nix/ { proxy_pass "+s.url+"/; }")
	for name, at := range map[string]string{"itself": s.url, "proxy": front + "/nix"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := newBrowser(t, 1000)
			copied := func(id string) (text string) {
				t.Helper()
				button := `//button[@data-copies="` + id + `"]`
				err := chromedp.Do(ctx, chromedp.Click(button, chromedp.NodeVisible), chromedp.WaitVisible(button+`[.="Copied"]`))
				if err == nil {
					text, err = chromedp.Run(ctx, chromedp.Evaluate[string]("navigator.clipboard.readText()", chromedp.EvalAwaitPromise))
				}
				if err != nil {
					t.Fatalf("copy %s: %v", id, err)
				}
				return strings.TrimSpace(text)
			}
			if err := chromedp.Do(ctx, chromedp.Navigate(at+"/")); err != nil {
				t.Fatal(err)
			}
			if got := copied("url"); got != at {
				t.Errorf("the URL to copy is %q, want %q", got, at)
			}
			if got := copied("key-0"); got != s.publicKey {
				t.Errorf("the key to copy is %q, want %q", got, s.publicKey)
			}
			if got, want := copied("push"), "nix copy --to "+at+" PATH"; got != want {
				t.Errorf("the command to copy is %q, want %q", got, want)
			}
			lines := copied("conf")
			eachLaterNix(t, func(t *testing.T, n nixSystem) { // 2.3 has no extra-trusted-public-keys
				m := newMachine(t, n)
				m.write("conf/nix.conf", nixConf+lines+"\n")
				m.run("nix-store", "--realise", path)
				sameTree(t, m.path(path), debian(t).Root+path)
			})
		})
	}

	t.Run("telephone", func(t *testing.T) {
		t.Parallel()
		s := startDepot(newMachine(t, systemNix()))
		ctx := newBrowser(t, 360)
		if err := chromedp.Do(ctx, chromedp.Navigate(s.url+"/"), chromedp.WaitVisible(`//p[contains(., "works as soon as something is pushed.")]`)); err != nil {
			t.Fatal(err)
		}
		beyond, err := chromedp.Run(ctx, chromedp.Evaluate[int]("document.documentElement.scrollWidth - innerWidth"))
		if err != nil {
			t.Fatal(err)
		}
		if beyond > 0 {
			t.Errorf("%d pixels of the page are not seen", beyond)
		}
	})
}
