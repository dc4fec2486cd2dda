package listen

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// An Endpoint is an address where this process answers.
type Endpoint struct {
	Kind string // HTTP, HTTPS or SSH
	Addr net.Addr
}

func (d Endpoint) String() string { return d.Kind + " at " + d.Addr.String() }

// question is what is asked at an endpoint for HTTP. To answer it takes what answering a client does: a look at the caches.
const question = "GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\nUser-Agent: firn, asking itself\r\nConnection: close\r\n\r\n"

// ask asks whether the endpoint answers. What it says does not matter, nor does it whether it hangs up, as one does that is overrun:
// an error means that no server answered until ctx ended, or that there is no way to it.
func (d Endpoint) ask(ctx context.Context) error {
	network, address := d.nearest()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("ask %s: %w", d, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if d.Kind == HTTPS {
		// It is this process itself that is asked, whatever certificate it has, or if it has none yet.
		secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		if err := secured.HandshakeContext(ctx); err != nil {
			return d.silence(ctx)
		}
		conn = secured
	}
	if d.Kind != SSH { // where the server speaks first
		if _, err := io.WriteString(conn, question); err != nil {
			return d.silence(ctx)
		}
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return d.silence(ctx)
	}
	return nil
}

// silence is the error of an endpoint that has not said a word until ctx ended, and nil of one that has hung up before.
func (d Endpoint) silence(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("ask %s: no answer: %w", d, ctx.Err())
}

// nearest returns an address where the endpoint can be found from this machine.
func (d Endpoint) nearest() (network, address string) {
	tcp, ok := d.Addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return d.Addr.Network(), d.Addr.String()
	}
	loopback := netip.IPv6Loopback()
	if tcp.IP.To4() != nil {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return "tcp", netip.AddrPortFrom(loopback, uint16(tcp.Port)).String()
}
