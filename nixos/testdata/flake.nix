# What the flake gives, with stand-ins as its inputs, and `used`, the machine of a flake that uses it.
{
  user ? null,
}:
let
  lib = import ./lib.nix;
  system =
    configuration:
    import ./nixos.nix {
      inherit configuration;
      module = { }; # it is imported
      whole = true;
    };

  # As nixpkgs' own, for one system.
  packages = name: rec {
    inherit lib;
    stdenv = {
      hostPlatform = {
        system = name;
        isLinux = builtins.match ".*-linux" name != null;
      };
      buildPlatform.canExecute = _: true;
    };
    go = "go";
    gnumake = "make";
    nix = "nix";
    installShellFiles = "installShellFiles";
    mkShell = args: args;
    buildGoModule = args: args // {
      type = "derivation";
      name = "${args.pname}-${args.version}";
      outPath = "/firn";
    };
    callPackage =
      file: args:
      let
        function = import file;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // args);
    pkgs = packages name;
    coreutils = "/coreutils";
    openssl = "/usr";
    writeText = name: _: "/nix/store/${name}";
    runCommand = name: _: _: "/nix/store/${name}";
    testers.runNixOSTest = file: import file { inherit lib pkgs; };
  };
  systems = [
    "x86_64-linux"
    "aarch64-linux"
    "x86_64-darwin"
    "aarch64-darwin"
  ];

  flake = import ../../flake.nix;
  self = outputs // {
    lastModifiedDate = "20261126184500";
  };
  outputs = flake.outputs {
    inherit self;
    inherit nixpkgs;
  };
  nixpkgs = {
    lib = lib // {
      nixosSystem = { modules, ... }: system { imports = modules; };
    };
    legacyPackages = lib.genAttrs systems packages;
  };

  # The systems that have each attribute.
  bySystem =
    set:
    lib.genAttrs (lib.unique (lib.concatMap lib.attrNames (lib.attrValues set))) (
      name: lib.filter (s: set.${s} ? ${name} && builtins.isAttrs set.${s}.${name}) (lib.attrNames set)
    );

  test = outputs.checks.x86_64-linux.nixos;
  server = system test.nodes.server;
  client = system test.nodes.client;
  chosen = system { imports = [ outputs.nixosModules.default ]; };
in
{
  packages = bySystem outputs.packages;
  checks = bySystem outputs.checks;
  devShells = bySystem outputs.devShells;
  overlay = (outputs.overlays.default (packages "x86_64-linux") { }).firn.name;
  module = chosen.services.firn.package.name;
  package = {
    inherit (outputs.packages.x86_64-linux.default) ldflags subPackages postInstall;
  };
  program = lib.getExe outputs.packages.aarch64-darwin.default;
  server = {
    inherit (server.services.firn.settings) priority;
    ports = server.networking.firewall.allowedTCPPorts;
  };
  script = builtins.seq client.nix.settings (builtins.isString test.testScript);
}
// (
  if user == null then
    { }
  else
    {
      used =
        (user.outputs {
          inherit nixpkgs;
          firn = self;
        }).nixosConfigurations.cache;
    }
)
