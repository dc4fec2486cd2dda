package debstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// register has Nix register paths in the store at root.
// Nix finds the files of a path that it registers under /nix/store only, so it runs in a mount namespace where that is
// the store at root. /nix of the machine must exist to mount upon; it is not touched.
func register(ctx context.Context, root string, paths []*storePath) error {
	if os.Getuid() != 0 {
		return errors.New("register store paths: only root can")
	}
	if err := os.MkdirAll("/nix", 0o755); err != nil {
		return fmt.Errorf("register store paths: %w", err)
	}
	const script = `set -e; mount --bind "$1/nix" /nix; exec nix-store --register-validity`
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", script, "sh", root)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"HOME=" + root,
		"NIX_CONF_DIR=" + root, // there is none: Nix's defaults
		"NIX_REMOTE=local",
		"NIX_CONFIG=build-users-group =",
	}
	var in, out bytes.Buffer
	for _, p := range paths {
		// Path, deriver, number of references, references: decodeValidPathInfo in Nix's store-api.cc.
		fmt.Fprintf(&in, "%s\n\n%d\n", p.path, len(p.refs))
		for _, ref := range p.refs {
			fmt.Fprintln(&in, ref)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("register %d store paths: %w: %s", len(paths), err, out.Bytes())
	}
	return nil
}
