# The NixOS module: services.firn.
#
# The unit is the one of the package, packaging/systemd/firn.service, and so is the place of the configuration, /etc/firn/firn.toml.
# What stands here is what a configuration adds to them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.firn;
  format = pkgs.formats.toml { };
  inherit (lib) types mkOption literalExpression;

  stateDir = "/var/lib/firn";
  configFile = "/etc/firn/firn.toml";

  # A file that is read on the machine. A path that is written without quotes stays a path: it must not become a copy in the store.
  secretFile = types.path // {
    description = "path of a file outside the Nix store";
  };

  keyFiles =
    example:
    mkOption {
      type = types.listOf secretFile;
      default = [ ];
      example = [ example ];
      description = ''
        Files with secret keys to sign with, as `firn key generate` and
        `nix-store --generate-binary-cache-key` write them. systemd reads them as root and
        hands them to the service; they never enter the Nix store.
      '';
    };

  # An option of `settings` that is left out of the file unless it is given, for firn's own default to count.
  setting =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  addresses =
    default: description:
    mkOption {
      type = types.listOf (types.strMatching "(unix:/.+|.*:[0-9]+)") // {
        description = "list of addresses: HOST:PORT, :PORT or unix:PATH";
      };
      inherit default description;
    };

  cacheOptions = {
    options = {
      private = mkOption {
        type = types.bool;
        default = false;
        description = "Whether reading needs a token, or an SSH key.";
      };
      sources = mkOption {
        type = types.nullOr (
          types.listOf (
            types.enum [
              "local"
              "depot"
            ]
          )
        );
        default = null;
        example = [
          "local"
          "depot"
        ];
        description = ''
          Where it finds store paths, in order: `local` is the store of this machine, `depot` what is pushed.
          By default `main` has both, and every other cache `depot`.
        '';
      };
      priority = mkOption {
        type = types.nullOr types.ints.u16;
        default = null;
        example = 20;
        description = ''
          What clients that know several caches order them by, the lowest first; cache.nixos.org has 40.
          That of `main` is {option}`services.firn.settings.priority`.
        '';
      };
      hosts = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "team.example.org" ];
        description = "Host names under which it answers at the root.";
      };
      allowMissingReferences = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to accept store paths whose references are not in the cache.";
      };
      signKeyPaths = keyFiles "/etc/firn/team-secret" // {
        description = ''
          Files with the secret keys that it signs with. Without any it keeps the keys that it has:
          firn makes one, and `firn cache show NAME` prints the public half.
        '';
      };
    };
  };

  # The credentials of a service: from where systemd reads each, by its name, and where the service finds it.
  credential =
    service: name: i: path:
    {
      load = "${name}.${toString i}:${toString path}";
      path = "/run/credentials/${service}.service/${name}.${toString i}";
    };
  mainKeys = lib.imap0 (credential "firn" "key") cfg.signKeyPaths;
  tlsCerts = lib.imap0 (credential "firn" "tls-cert") (map (p: p.certificate) cfg.tls.certificates);
  tlsKeys = lib.imap0 (credential "firn" "tls-key") (map (p: p.key) cfg.tls.certificates);
  cacheKeys = name: lib.imap0 (credential "firn-caches" "key.${name}") cfg.caches.${name}.signKeyPaths;
  paths = map (c: c.path);
  loadCredential =
    credentials: lib.mkIf (credentials != [ ]) { LoadCredential = map (c: c.load) credentials; };

  # An assertion tells when there is no such certificate.
  acme = config.security.acme.certs.${cfg.tls.useACMEHost} or {
    directory = "";
    group = cfg.group;
  };
  useACME = cfg.tls.useACMEHost != null;
  hasCaches = cfg.caches != { };

  # firn itself says what is wrong with the file, before a system with it is ever started.
  file = format.generate "firn.toml" (
    lib.filterAttrs (name: v: v != null && (v != [ ] || name == "listen")) cfg.settings
  );
  checkedFile =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "firn.toml" { inherit file; } ''
        ${lib.getExe cfg.package} config check --no-keys "$file"
        cp "$file" "$out"
      ''
    else
      file;

  # What brings the caches into the state that is declared, before the server starts: so nothing is served by an old rule.
  # A host name may go from one cache to another, so all are taken away before any is given.
  applyCaches =
    let
      firn = lib.getExe cfg.package;
      flag = name: value: [
        "--${name}"
        (toString value)
      ];
      switch = name: on: [ (if on then "--${name}" else "--no-${name}") ];
      flags =
        name: c:
        lib.escapeShellArgs (
          switch "private" c.private
          ++ switch "allow-missing-references" c.allowMissingReferences
          ++ lib.concatMap (flag "source") (if c.sources == null then [ ] else c.sources)
          ++ lib.optionals (c.priority != null) (flag "priority" c.priority)
          ++ lib.concatMap (flag "key") (paths (cacheKeys name))
        );
      make = name: c: ''
        if ${firn} cache show ${name} >/dev/null 2>&1; then
          ${firn} cache set ${name} --host ""
        else
          ${firn} cache create ${name} ${flags name c}
        fi
      '';
      set = name: c: ''
        ${firn} cache set ${name} ${flags name c} ${
          lib.escapeShellArgs (lib.concatMap (flag "host") (if c.hosts == [ ] then [ "" ] else c.hosts))
        }
      '';
    in
    pkgs.writeShellScript "firn-caches" ''
      set -eu
      export FIRN_CONFIG=${configFile}
      ${lib.concatStrings (lib.mapAttrsToList make (removeAttrs cfg.caches [ "main" ]))}
      ${lib.optionalString (cfg.caches ? main) ''${firn} cache set main --host ""''}
      ${lib.concatStrings (lib.mapAttrsToList set cfg.caches)}
    '';

  # What all services have.
  identity = lib.mkMerge [
    {
      # An account that is there also while the service is not: firn-admin and the certificates of ACME need one.
      DynamicUser = false;
      User = cfg.user;
      Group = cfg.group;
    }
    (lib.mkIf elsewhere { ReadWritePaths = [ cfg.settings.state ]; })
  ];
  elsewhere = cfg.settings.state != stateDir;
  mounts = lib.mkIf elsewhere { RequiresMountsFor = [ cfg.settings.state ]; };

  # The commands that look at the state of the server, or change it, are for the user that it runs as.
  admin = pkgs.writeShellScriptBin "firn-admin" ''
    export FIRN_CONFIG=${configFile}
    if [ "$(${pkgs.coreutils}/bin/id -un)" = ${cfg.user} ]; then
      exec ${lib.getExe cfg.package} "$@"
    elif [ "$(${pkgs.coreutils}/bin/id -u)" != 0 ]; then
      echo "firn-admin: only root and ${cfg.user} may do this: sudo firn-admin $*" >&2
      exit 1
    fi
    exec ${pkgs.util-linux}/bin/setpriv --reuid=${cfg.user} --regid=${cfg.group} --init-groups ${lib.getExe cfg.package} "$@"
  '';

  # HTTPS is at port 443 if there are certificates and no other setting.
  https =
    if cfg.settings.https == [ ] && (cfg.settings.acme != null || cfg.settings.tls-cert != [ ]) then
      [ ":443" ]
    else
      cfg.settings.https;

  # The sockets of the package's units, by their names: the addresses as systemd writes them.
  sockets = lib.filterAttrs (_: addresses: addresses != [ ]) {
    firn = cfg.settings.listen;
    firn-https = https;
    firn-ssh = cfg.settings.ssh;
  };
  socketUnits = lib.optionals cfg.socketActivation (map (name: "${name}.socket") (lib.attrNames sockets));
  stream = address: lib.removePrefix "unix:" (lib.removePrefix ":" address);
  # What systemd cannot open, as it asks for no names, or loses, as the directory of the service ends with it.
  isNoStream =
    address:
    builtins.match "unix:.*|:[0-9]+|[0-9.]+:[0-9]+|\\[[0-9a-fA-F:.]*(%.*)?]:[0-9]+" address == null
    || lib.hasPrefix "unix:/run/firn/" address;
  noStreams = lib.filter isNoStream (lib.concatLists (lib.attrValues sockets));

  # The ports that others reach.
  openPorts =
    let
      parse = builtins.match "(.*):([0-9]+)";
      isLocal =
        host:
        builtins.elem host [
          "localhost"
          "[::1]"
        ]
        || lib.hasPrefix "127." host;
      port =
        address:
        let
          parts = parse address;
          n = lib.toInt (lib.elemAt parts 1);
        in
        lib.optional (
          !lib.hasPrefix "unix:" address && !isLocal (lib.head parts) && n != 0
        ) n;
    in
    lib.unique (lib.concatMap port (cfg.settings.listen ++ https ++ cfg.settings.ssh));

  inStore = path: lib.hasPrefix "${builtins.storeDir}/" (toString path);
  notInStore = option: paths: {
    assertion = !lib.any inStore paths;
    message = ''
      ${option}: ${toString (lib.filter inStore paths)} is in the Nix store, which every user can read.
      Keep the secret elsewhere on the machine, with sops-nix, agenix or by hand, and write its path in quotes: "/etc/firn/secret".
    '';
  };

  allHosts = lib.concatMap (c: map lib.toLower c.hosts) (lib.attrValues cfg.caches);
in
{
  options.services.firn = {
    enable = lib.mkEnableOption "firn, a Nix binary cache";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The firn to run. Its unit, `firn.service`, is used.";
    };

    user = mkOption {
      type = types.str;
      default = "firn";
      description = "The user that firn runs as, who owns what is pushed. It is made if it is `firn`.";
    };

    group = mkOption {
      type = types.str;
      default = "firn";
      description = "The group that firn runs as. It is made if it is `firn`.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the TCP ports of `listen`, `https` and `ssh` in the firewall, except those of this machine only.";
    };

    socketActivation = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether systemd opens the addresses of `listen`, `https` and `ssh`, and keeps them while firn is restarted or updated:
        then no connection is refused.
      '';
    };

    signKeyPaths = keyFiles "/etc/firn/secret" // {
      description = ''
        Files with the secret keys that sign what the cache `main` serves, as `firn key generate` and
        `nix-store --generate-binary-cache-key` write them. systemd reads them as root and hands them to the service,
        so they may belong to root, and they never enter the Nix store.
        Without any, the first start makes one in ${stateDir}.
      '';
    };

    verify = mkOption {
      type = types.nullOr types.str;
      default = "monthly";
      example = "Sun 03:00";
      description = ''
        When to compare the pushed paths with their hashes, in the syntax of {manpage}`systemd.time(7)`; `null` is never. What is damaged
        is not served any more until it is pushed again, and `firn-verify.service` has failed then.
      '';
    };

    environmentFile = mkOption {
      type = types.nullOr secretFile;
      default = null;
      example = "/etc/firn/environment";
      description = ''
        A file with variables for the service, for systemd to read: settings by their names there, such as `FIRN_LOG_LEVEL=debug`.
        They count before {option}`services.firn.settings`.
      '';
    };

    caches = mkOption {
      type = types.attrsOf (types.submodule cacheOptions);
      default = { };
      example = literalExpression ''
        {
          main.hosts = [ "cache.example.org" ];
          team = {
            private = true;
            priority = 20;
          };
        }
      '';
      description = ''
        The caches of the server. `main` is always there, and answers at the root; every other one answers at `/NAME/`.
        Each start sets what is declared here, and so undoes `firn cache set`; settings that are not declared stay as they are.
        A cache that is no longer declared is not deleted, because the paths pushed to it would be lost:
        `firn-admin cache delete NAME` does that.
      '';
    };

    tls = {
      certificates = mkOption {
        type = types.listOf (
          types.submodule {
            options = {
              certificate = mkOption {
                type = types.path;
                example = "/etc/firn/cache.pem";
                description = "The certificate, with those between it and its authority.";
              };
              key = mkOption {
                type = secretFile;
                example = "/etc/firn/cache.key";
                description = "Its key.";
              };
            };
          }
        );
        default = [ ];
        description = ''
          Certificates in files; the name that a client asks for chooses. systemd reads them as root when the service starts:
          restart it after a change.
        '';
      };

      useACMEHost = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "cache.example.org";
        description = ''
          The name of a certificate of {option}`security.acme.certs`. firn reads it by itself when it is renewed.
          Without NixOS's ACME client there is firn's own: {option}`services.firn.settings.acme`.
        '';
      };
    };

    settings = mkOption {
      default = { };
      example = literalExpression ''
        {
          listen = [ ":80" ];
          plain-http = "redirect";
          acme = "you@example.org";
        }
      '';
      description = ''
        The settings, by the names that they have in the file; docs/configuration.md lists them all.
        `firn config check` reads the file when the system is built.
      '';
      type = types.submodule {
        freeformType = format.type;
        options = {
          listen = addresses [ "[::]:5000" ] "Where to listen.";
          https = addresses [ ] "Where to listen with TLS, which is `:443` where there are certificates.";
          ssh = addresses [ ] "Where to listen for ssh:// and ssh-ng://.";
          state = mkOption {
            type = types.strMatching "/.*";
            default = stateDir;
            description = "The directory for what is pushed, which the user of firn owns. It is made.";
          };
          key = mkOption {
            type = types.listOf types.str;
            default = [ ];
            description = "Files with secret keys that the user of firn can read by itself. {option}`services.firn.signKeyPaths` is for all others.";
          };
          tls-cert = mkOption {
            type = types.listOf types.str;
            default = [ ];
            description = "Files with certificates that the user of firn can read by itself, and reads again when they change.";
          };
          tls-key = mkOption {
            type = types.listOf types.str;
            default = [ ];
            description = "Their keys, in the same order.";
          };
          acme = setting types.str "The mail address to tell an ACME authority, of which firn then gets certificates for the host names of all caches. This agrees to the authority's terms.";
          plain-http = setting (types.enum [
            "serve"
            "redirect"
          ]) "What to do with requests over plain HTTP where there are certificates.";
          unknown-host = setting (types.enum [
            "main"
            "refuse"
          ]) "What to do with requests for a host name that no cache has.";
          trusted-proxy = setting (types.listOf types.str) "Reverse proxies whose X-Forwarded-For or Forwarded header is trusted to name the real client: addresses, ranges, `local`, `unix` or `none`.";
          store = setting types.str "The root of the store to serve, `auto` for that of this machine, or `off`.";
          priority = setting types.ints.u16 "The priority of the cache `main`: clients ask the cache with the lowest number first.";
          compression = setting (types.enum [
            "none"
            "zstd"
          ]) "How NARs of the local store are served.";
          cache-size = setting types.str "How much disk compressed NARs may take, such as `10GiB`.";
          max-nar-size = setting types.str "The largest NAR that may be pushed, such as `64GiB`.";
          log-level = setting (types.enum [
            "debug"
            "info"
            "warn"
            "error"
          ]) "Log records of this level and above.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      (notInStore "services.firn.signKeyPaths" cfg.signKeyPaths)
      (notInStore "services.firn.settings.key" cfg.settings.key)
      (notInStore "services.firn.settings.tls-key" cfg.settings.tls-key)
      (notInStore "services.firn.tls.certificates.*.key" (map (p: p.key) cfg.tls.certificates))
      (notInStore "services.firn.environmentFile" (lib.optional (cfg.environmentFile != null) cfg.environmentFile))
      {
        assertion = !cfg.socketActivation || noStreams == [ ];
        message = ''
          services.firn.socketActivation: systemd cannot keep ${toString noStreams} open.
          Write addresses with numbers, such as "127.0.0.1:5000", and Unix sockets outside of /run/firn, such as "unix:/run/firn.sock".
        '';
      }
      {
        assertion = (cfg.caches.main.priority or null) == null;
        message = "services.firn.caches.main.priority: the priority of main is a setting of the server: write services.firn.settings.priority.";
      }
      {
        assertion = lib.length (lib.unique allHosts) == lib.length allHosts;
        message = ''
          services.firn.caches.*.hosts: ${
            toString (lib.unique (lib.filter (h: lib.count (o: o == h) allHosts > 1) allHosts))
          } is there twice. Give each host name to one cache.
        '';
      }
      {
        assertion = !useACME || config.security.acme.certs ? ${cfg.tls.useACMEHost};
        message = ''
          services.firn.tls.useACMEHost: there is no certificate ${toString cfg.tls.useACMEHost}.
          Add security.acme.certs."${toString cfg.tls.useACMEHost}", or have firn get one by itself, with services.firn.settings.acme.
        '';
      }
    ]
    ++ lib.mapAttrsToList (name: c: notInStore "services.firn.caches.${name}.signKeyPaths" c.signKeyPaths) cfg.caches
    ++ map (name: {
      assertion = builtins.match "[a-z0-9][a-z0-9._-]*" name != null;
      message = "services.firn.caches: ${name} is no name for a cache, as it is part of the URL. Use small letters, digits, '-', '_' and '.'.";
    }) (lib.attrNames cfg.caches);

    services.firn.settings = lib.mkMerge [
      (lib.mkIf (cfg.signKeyPaths != [ ]) { key = paths mainKeys; })
      # In one list each, because their order counts: clients that ask for no name get the first certificate.
      (lib.mkIf (useACME || cfg.tls.certificates != [ ]) {
        tls-cert = lib.optional useACME "${acme.directory}/fullchain.pem" ++ paths tlsCerts;
        tls-key = lib.optional useACME "${acme.directory}/key.pem" ++ paths tlsKeys;
      })
    ];

    environment.etc."firn/firn.toml".source = checkedFile;
    environment.systemPackages = [
      cfg.package
      admin
    ];

    users.users = lib.mkIf (cfg.user == "firn") {
      firn = {
        isSystemUser = true;
        inherit (cfg) group;
        home = cfg.settings.state;
      };
    };
    users.groups = lib.mkIf (cfg.group == "firn") { firn = { }; };

    # firn asks the daemon for what the database does not say.
    nix.settings = lib.mkIf config.nix.enable { extra-allowed-users = [ cfg.user ]; };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall openPorts;

    systemd.tmpfiles.rules = lib.mkIf elsewhere [
      "d ${cfg.settings.state} 0700 ${cfg.user} ${cfg.group} -"
    ];

    systemd.packages = [ cfg.package ];
    systemd.services.firn = {
      wantedBy = [ "multi-user.target" ];
      requires = socketUnits ++ lib.optional hasCaches "firn-caches.service";
      wants = lib.mkIf useACME [ "acme-${cfg.tls.useACMEHost}.service" ];
      after =
        socketUnits
        ++ lib.optional hasCaches "firn-caches.service"
        ++ lib.optional useACME "acme-${cfg.tls.useACMEHost}.service";
      # In one step, which leaves the sockets alone.
      stopIfChanged = false;
      restartTriggers = [ checkedFile ] ++ lib.optional hasCaches applyCaches;
      unitConfig = mounts;
      serviceConfig = lib.mkMerge [
        identity
        (loadCredential (mainKeys ++ tlsCerts ++ tlsKeys))
        (lib.mkIf (cfg.environmentFile != null) { EnvironmentFile = toString cfg.environmentFile; })
        (lib.mkIf useACME { SupplementaryGroups = [ acme.group ]; })
      ];
    };

    systemd.sockets = lib.mkIf cfg.socketActivation (
      lib.mapAttrs (_: addresses: {
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = [ "" ] ++ map stream addresses; # the empty one takes away that of the package
        }
        // lib.optionalAttrs (cfg.settings ? socket-mode) {
          SocketMode = cfg.settings.socket-mode;
          SocketUser = cfg.user;
          SocketGroup = cfg.group;
        };
      }) sockets
    );

    systemd.services.firn-verify = lib.mkIf (cfg.verify != null) {
      restartIfChanged = false; # a switch would start it again, and wait for hours until everything is read
      unitConfig = mounts;
      serviceConfig = identity;
    };
    systemd.timers.firn-verify = lib.mkIf (cfg.verify != null) {
      wantedBy = [ "timers.target" ];
      timerConfig.OnCalendar = [
        "" # takes away that of the package
        cfg.verify
      ];
    };

    # It ends before the server starts, and runs again at each start of the server, which does not need these secrets.
    systemd.services.firn-caches = lib.mkIf hasCaches {
      description = "Declared caches of the Nix binary cache";
      unitConfig = mounts;
      serviceConfig = lib.mkMerge [
        identity
        (loadCredential (lib.concatMap cacheKeys (lib.attrNames cfg.caches)))
        {
          Type = "oneshot";
          ExecStart = applyCaches;
          StateDirectory = "firn";
          StateDirectoryMode = "0700";
          UMask = "0077";
          CapabilityBoundingSet = "";
          LockPersonality = true;
          MemoryDenyWriteExecute = true;
          NoNewPrivileges = true;
          PrivateDevices = true;
          PrivateNetwork = true;
          PrivateTmp = true;
          ProtectClock = true;
          ProtectControlGroups = true;
          ProtectHome = true;
          ProtectHostname = true;
          ProtectKernelLogs = true;
          ProtectKernelModules = true;
          ProtectKernelTunables = true;
          ProtectProc = "invisible";
          ProtectSystem = "strict";
          RestrictAddressFamilies = "none";
          RestrictNamespaces = true;
          RestrictRealtime = true;
          RestrictSUIDSGID = true;
          SystemCallArchitectures = "native";
          SystemCallFilter = [
            "@system-service"
            "~@privileged @resources"
          ];
        }
      ];
    };
  };
}
