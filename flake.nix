{
  description = "firn, a Nix binary cache";

  # firn needs Go 1.26, which nixpkgs has from 26.05 on.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      darwin = [
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forEach = systems: f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});

      # By nixpkgs' rule for what has had no release: the day of the commit.
      version = "0-unstable-${builtins.substring 0 8 (self.lastModifiedDate or "19700101")}";
      package = pkgs: pkgs.callPackage ./nixos/package.nix { inherit version; };
    in
    {
      packages = forEach (linux ++ darwin) (pkgs: {
        default = package pkgs;
        firn = package pkgs;
      });

      overlays.default = final: _: { firn = package final; };

      nixosModules = {
        default = self.nixosModules.firn;
        firn =
          { lib, pkgs, ... }:
          {
            imports = [ ./nixos/module.nix ];
            services.firn.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.firn;
          };
      };

      checks = forEach linux (pkgs: {
        package = package pkgs;
        nixos = pkgs.testers.runNixOSTest ./nixos/test.nix;
      });

      devShells = forEach (linux ++ darwin) (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.go
            pkgs.gnumake
            pkgs.nix
          ];
        };
      });
    };
}
