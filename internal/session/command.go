package session

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/kballard/go-shellquote"
)

// A Protocol is one of Nix's own between two machines.
type Protocol int

const (
	Legacy Protocol = iota + 1 // the serve protocol, of ssh:// and nix-store --serve
	Worker                     // the worker protocol, of ssh-ng:// and nix-daemon --stdio
)

// maxCommand bounds command lines, in bytes. Those that Nix sends have some 50.
const maxCommand = 4 << 10

// errCommand refuses every other command.
var errCommand = errors.New("this is a Nix cache: it answers nix-store --serve [--write] and nix-daemon --stdio, which Nix asks for by itself, and runs nothing")

// A Command is what a client wants to run.
type Command struct {
	Protocol Protocol
	ReadOnly bool // the client does not ask to write
}

// ParseCommand reads the command line that a client sends.
// Nix quotes its words as a shell does, and remote-program may name the program by its path. An error is for the client.
func ParseCommand(line string) (Command, error) {
	if len(line) > maxCommand {
		return Command{}, errCommand
	}
	words, err := shellquote.Split(line)
	if err != nil || len(words) < 2 {
		return Command{}, errCommand
	}
	program, args := path.Base(words[0]), words[1:]
	if program == "nix" && args[0] == "daemon" { // remote-program=nix daemon
		program, args = "nix-daemon", args[1:]
	}
	var serve, write, stdio bool
	for i := 0; i < len(args); i++ {
		option, value, joined := strings.Cut(args[i], "=")
		switch {
		case args[i] == "--serve":
			serve = true
		case args[i] == "--write":
			write = true
		case args[i] == "--stdio":
			stdio = true
		case option == "--store": // remote-store
			if !joined && i+1 < len(args) {
				i++
				value = args[i]
			}
			if value != "auto" && value != "daemon" && value != "" {
				return Command{}, fmt.Errorf("remote-store: there is no store %q here, only the cache that the user is named as", value)
			}
		default:
			return Command{}, errCommand
		}
	}
	switch {
	case program == "nix-store" && serve && !stdio:
		return Command{Legacy, !write}, nil
	case program == "nix-daemon" && stdio && !serve && !write:
		return Command{Protocol: Worker}, nil
	}
	return Command{}, errCommand
}
