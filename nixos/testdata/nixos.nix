# A stand-in for NixOS: the options that the module sets, the packages that it uses, and how NixOS makes files of them.
#
#   nix-instantiate --eval --strict --json nixos.nix --arg configuration ./configuration.nix
#
# gives the files as the machine would have them. With `build` the packages are derivations, which are built by /bin/sh.
{
  configuration,
  lib ? import ./lib.nix,
  firn ? "/firn",
  build ? false,
  # The module that is tested, unless the configuration imports it.
  module ? ../module.nix,
  # Give the configuration instead of the files.
  whole ? false,
}:
let
  inherit (lib) types mkOption;

  # A derivation, or what looks like one and shows its text.
  make =
    name: text: env:
    if build then
      derivation (
        env
        // {
          inherit name;
          system = builtins.currentSystem;
          builder = "/bin/sh";
          args = [
            "-ec"
            text
          ];
          PATH = "/usr/bin:/bin";
        }
      )
    else
      env
      // {
        type = "derivation";
        inherit name text;
        outPath = "/nix/store/00000000000000000000000000000000-${name}";
      };
  file =
    name: text:
    if build then
      builtins.toFile name text
    else
      make name text { };

  pkgs = {
    inherit lib;
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform = {
        isLinux = true;
        system = "x86_64-linux";
      };
    };
    coreutils = "/usr";
    util-linux = "/usr";
    runCommand = name: env: text: make name text env;
    writeShellScript = name: text: file name "#!/bin/sh\n${text}";
    writeShellScriptBin = name: text: make name text { };
    callPackage =
      f: args:
      let
        function = import f;
      in
      function (
        builtins.intersectAttrs (builtins.functionArgs function) (pkgs // { buildGoModule = buildPackage; }) // args
      );
    formats.toml =
      { }:
      {
        type = types.attrsOf toml;
        generate = name: value: file name (lib.concatStrings (lib.mapAttrsToList line value));
      };
    installShellFiles = null;
  };
  # The package is the program in a directory that is there already.
  buildPackage =
    args:
    args
    // {
      type = "derivation";
      name = args.pname;
      outPath = firn;
    };

  toml = types.oneOf [
    types.bool
    types.int
    types.str
    types.path
    (types.listOf toml)
    (types.attrsOf toml)
  ];
  # A line of TOML: values without tables look as in JSON.
  line = key: value: "${key} = ${builtins.toJSON value}\n";

  option =
    type: default:
    mkOption {
      inherit type default;
    };
  # Lists are added up, all else must be said once.
  unitOption = lib.mkOptionType {
    name = "systemd option";
    merge =
      loc: defs:
      if builtins.isList (lib.head defs).value then
        lib.concatMap (d: d.value) defs
      else if lib.all (d: d.value == (lib.head defs).value) defs then
        (lib.head defs).value
      else
        throw "${lib.concatStringsSep "." loc} is said twice";
  };
  section = option (types.attrsOf unitOption) { };
  names = option (types.listOf types.str) [ ];
  unit = {
    description = option types.str "";
    wantedBy = names;
    wants = names;
    after = names;
    requires = names;
    stopIfChanged = option types.bool true;
    restartIfChanged = option types.bool true;
    restartTriggers = option (types.listOf types.raw) [ ];
    reloadTriggers = option (types.listOf types.raw) [ ];
    unitConfig = section;
  };

  nixos = {
    options = {
      assertions = option (types.listOf types.raw) [ ];
      warnings = option (types.listOf types.str) [ ];
      environment.etc = option (types.attrsOf (
        types.submodule { options.source = mkOption { type = types.path; }; }
      )) { };
      environment.systemPackages = option (types.listOf types.package) [ ];
      networking.hostName = option types.str "machine";
      networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];
      nix.enable = option types.bool true;
      nix.settings = option (types.attrsOf types.raw) { };
      security.acme = {
        acceptTerms = option types.bool false;
        defaults.email = option types.str "";
        certs = option (types.attrsOf (
          types.submodule (
            { name, ... }:
            {
              options = {
                directory = option types.str "/var/lib/acme/${name}";
                group = option types.str "acme";
                webroot = option (types.nullOr types.str) null;
              };
            }
          )
        )) { };
      };
      security.pki.certificateFiles = option (types.listOf types.path) [ ];
      services.nginx = option (types.attrsOf types.raw) { };
      sops.secrets = option (types.attrsOf (
        types.submodule ({ name, ... }: { options.path = option types.str "/run/secrets/${name}"; })
      )) { };
      system.stateVersion = option types.str "";
      systemd.packages = option (types.listOf types.package) [ ];
      systemd.services = option (types.attrsOf (
        types.submodule { options = unit // { serviceConfig = section; environment = section; }; }
      )) { };
      systemd.sockets = option (types.attrsOf (
        types.submodule { options = unit // { listenStreams = names; socketConfig = section; }; }
      )) { };
      systemd.timers = option (types.attrsOf (
        types.submodule { options = unit // { timerConfig = section; }; }
      )) { };
      systemd.tmpfiles.rules = names;
      users.users = option (types.attrsOf types.raw) { };
      users.groups = option (types.attrsOf types.raw) { };
    };
  };

  inherit
    (lib.evalModules {
      modules = [
        nixos
        module
        configuration
      ];
      specialArgs = { inherit pkgs; };
    })
    config
    ;

  # A unit as NixOS writes it.
  lines =
    attrs:
    lib.concatStrings (
      lib.concatMap
        (
          name:
          map (v: "${name}=${if v == true then "true" else if v == false then "false" else toString v}\n") (
            if builtins.isList attrs.${name} then attrs.${name} else [ attrs.${name} ]
          )
        )
        (lib.attrNames attrs)
    );
  listed = name: value: lib.optionalString (value != [ ]) "${name}=${toString value}\n";
  head =
    u:
    "[Unit]\n"
    + lib.optionalString (u.description != "") "Description=${u.description}\n"
    + listed "After" u.after
    + listed "Requires" u.requires
    + listed "Wants" u.wants
    + lib.optionalString (!u.restartIfChanged) "X-RestartIfChanged=false\n"
    + listed "X-Reload-Triggers" u.reloadTriggers
    + listed "X-Restart-Triggers" u.restartTriggers
    + lines u.unitConfig;
  service = u: head u + "\n[Service]\n" + lines (lib.mapAttrs (n: v: "\"${n}=${v}\"") u.environment) + lines u.serviceConfig;
  socket = u: head u + "\n[Socket]\n" + lib.concatStrings (map (a: "ListenStream=${a}\n") u.listenStreams) + lines u.socketConfig;
  timer = u: head u + "\n[Timer]\n" + lines u.timerConfig;
  # What the package has a unit for becomes a drop-in.
  units = suffix: render: of: lib.mapAttrsToList (name: u: {
    name =
      if builtins.pathExists (../../packaging/systemd + "/${name}.${suffix}") then
        "${name}.${suffix}.d/overrides.conf"
      else
        "${name}.${suffix}";
    value = render u;
  }) of;

  # Of units that are no services, the names as they are written.
  suffixed =
    suffix: of:
    builtins.listToAttrs (
      lib.mapAttrsToList (name: value: {
        name = "${name}.${suffix}";
        inherit value;
      }) of
    );
  others = suffixed "socket" config.systemd.sockets // suffixed "timer" config.systemd.timers;
  failed = lib.filter (a: !a.assertion) config.assertions;
  toml' = config.environment.etc."firn/firn.toml".source or null;
  shown = {
    firewall = config.networking.firewall.allowedTCPPorts;
    nix = config.nix.settings;
    packages = map (p: p.name) config.environment.systemPackages;
    tmpfiles = config.systemd.tmpfiles.rules;
    users = config.users.users;
    groups = config.users.groups;
    wantedBy = lib.mapAttrs (_: u: u.wantedBy) (config.systemd.services // others);
  };
in
if failed != [ ] then
  throw "Failed assertions:\n${lib.concatStrings (map (a: "- ${a.message}\n") failed)}"
else if whole then
  config
else if build then
  toml'
else
  builtins.listToAttrs (
    units "service" service config.systemd.services ++ units "socket" socket config.systemd.sockets ++ units "timer" timer config.systemd.timers
  )
  // {
    "system.json" = builtins.toJSON shown;
  }
  // (if toml' == null then { } else { "firn.toml" = toml'.file.text; })
  # The scripts that these name.
  // builtins.listToAttrs (
    map
      (p: {
        inherit (p) name;
        value = p.text;
      })
      (
        lib.filter (p: p ? text) (
          config.environment.systemPackages
          ++ lib.concatMap (u: lib.optional (u.serviceConfig ? ExecStart) u.serviceConfig.ExecStart) (
            lib.attrValues config.systemd.services
          )
        )
      )
  )
