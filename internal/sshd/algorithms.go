package sshd

import (
	"runtime"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"
)

// algorithms returns what is offered: nothing that rests on SHA-1, on CBC or on groups below 2048 bits.
//
// The client chooses among the ciphers, and OpenSSH before version 10 prefers ChaCha20 to AES whatever the machine is good at.
// Where the processor does AES, that is several times as fast, and then nothing else is offered: OpenSSH has had it since 2013.
func algorithms() ssh.Config {
	ciphers := []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
	if !fastAES() {
		ciphers = append([]string{ssh.CipherChaCha20Poly1305}, ciphers...)
	}
	return ssh.Config{
		KeyExchanges: []string{
			ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519,
			ssh.KeyExchangeECDHP256, ssh.KeyExchangeECDHP384, ssh.KeyExchangeECDHP521,
		},
		Ciphers: ciphers,
		MACs:    []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM}, // named in the negotiation, and part of the ciphers
	}
}

func fastAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	case "arm64":
		return runtime.GOOS == "darwin" || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	}
	return false
}

// publicKeyAlgorithms are those of the keys that clients log in with, and of the certificates for them.
var publicKeyAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}
