# The package. It needs Go 1.26, so a nixpkgs from 26.05 on: pkgs.callPackage ./package.nix { }
{
  lib,
  stdenv,
  buildGoModule,
  installShellFiles,
  version ? "0-unstable",
}:
let
  canRun = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
in
buildGoModule {
  pname = "firn";
  inherit version;

  src = lib.cleanSource ../.;

  # What `go mod vendor` comes to. After a change of go.mod: go test ./nixos -run VendorHash -update
  vendorHash = "sha256-qmP9/KLvl/3TNC2Y7V6MMhz67Zv/YFDR0oQnuzjNYXo=";

  env.CGO_ENABLED = 0;
  subPackages = [ "cmd/firn" ];
  ldflags = [
    "-s"
    "-w"
    "-X=main.release=${version}"
  ];

  # The tests need a Nix store, nginx and systemd: `make ci` runs them.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  postInstall =
    lib.optionalString canRun ''
      $out/bin/firn manual man
      installManPage man/man*/*
      installShellCompletion --cmd firn \
        --bash <($out/bin/firn completion bash) \
        --zsh <($out/bin/firn completion zsh) \
        --fish <($out/bin/firn completion fish)
    ''
    + lib.optionalString stdenv.hostPlatform.isLinux ''
      install -D --mode=644 --target-directory=$out/lib/systemd/system packaging/systemd/*
      substituteInPlace $out/lib/systemd/system/* --replace-quiet /usr/bin/firn $out/bin/firn
    '';

  meta = {
    description = "Nix binary cache: serves store paths, and keeps what is pushed";
    license = lib.licenses.asl20;
    mainProgram = "firn";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
