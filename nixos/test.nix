# A NixOS test, on two virtual machines: one builds, pushes and fetches, the other is the cache.
#
#   nix build .#checks.x86_64-linux.nixos
{ lib, pkgs, ... }:
let
  # In a test the secrets may be in the store; the machine puts them where they would be.
  secret = pkgs.writeText "secret" "test-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA==";
  public = "test-1:A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
  certificate = pkgs.runCommand "certificate" { nativeBuildInputs = [ pkgs.openssl ]; } ''
    mkdir $out
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
      -subj /CN=server -addext subjectAltName=DNS:server -keyout $out/key.pem -out $out/cert.pem
  '';
in
{
  name = "firn";

  nodes.server = {
    imports = [ ./module.nix ];
    systemd.tmpfiles.rules = [
      "C /var/secrets/signing 0400 root root - ${secret}"
      "C /var/secrets/tls 0400 root root - ${certificate}/key.pem"
    ];
    services.firn = {
      enable = true;
      openFirewall = true;
      socketActivation = true;
      signKeyPaths = [ "/var/secrets/signing" ];
      tls.certificates = [
        {
          certificate = "${certificate}/cert.pem";
          key = "/var/secrets/tls";
        }
      ];
      caches.team.private = true;
      settings.priority = 20;
    };
  };

  nodes.client = {
    security.pki.certificateFiles = [ "${certificate}/cert.pem" ];
    nix.settings = {
      substituters = lib.mkForce [ ];
      trusted-public-keys = lib.mkForce [ public ];
      experimental-features = [ "nix-command" ];
    };
  };

  testScript = ''
    start_all()
    server.wait_for_unit("firn.service")
    server.wait_for_open_port(443)
    client.wait_for_unit("multi-user.target")

    with subtest("settings"):
        client.succeed("curl --fail http://server:5000/nix-cache-info | grep --fixed-strings 'Priority: 20'")

    with subtest("a client without a token cannot push"):
        path = client.succeed(
            "nix-build --no-out-link --expr "
            + "'derivation { name = \"x\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo x > $out\" ]; }'"
        ).strip()
        client.fail(f"nix copy --to https://server {path}")

    with subtest("a client with a token can"):
        token = server.succeed("firn-admin token create --push main ci").strip()
        client.succeed(f"umask 077; echo machine server login ci password {token} >/root/netrc")
        client.succeed(f"nix copy --option netrc-file /root/netrc --to https://server {path}")

    with subtest("it comes back with a signature that the client trusts, and not without"):
        client.succeed(f"nix-store --delete {path}")
        client.fail(f"nix copy --option trusted-public-keys ''' --from https://server {path}")
        client.succeed(f"nix copy --from https://server {path}")
        client.succeed(f"test $(cat {path}) = x")

    with subtest("a private cache can be read with a token only"):
        client.fail("curl --fail https://server/team/nix-cache-info")
        token = server.succeed("firn-admin token create --read team reader").strip()
        client.succeed(f"curl --fail --user any:{token} https://server/team/nix-cache-info")

    with subtest("a pushed path outlives a restart"):
        server.succeed("systemctl restart firn.service")
        server.wait_for_open_port(443)
        client.succeed(f"nix-store --delete {path}")
        client.succeed(f"nix copy --from https://server {path}")

    with subtest("systemd keeps the addresses, and starts what answers there"):
        server.succeed("systemctl stop firn.service")
        client.succeed("curl --fail http://server:5000/nix-cache-info")
        server.wait_for_unit("firn.service")

    print(server.succeed("systemd-analyze security firn.service --threshold=20"))
  '';
}
