package nix_test

import (
	"crypto/sha256"
	"fmt"
	"log"

	"firn/nix"
)

// A narinfo is read, its signature checked, and served again from elsewhere.
func Example() {
	text := []byte(`StorePath: /nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt
URL: nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar.xz
Compression: xz
NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
NarSize: 120
References: i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt
Sig: test-1:7XPm1uUkLvbcdSk/S0tLh5iLxKQ3PCPjFNI6hGMj3L3ngRR95wgP+dC1VG86lpPxmRWj26Pi1dPBl/iopaJaDQ==
`)
	info, err := nix.ParseNARInfo(nix.DefaultStoreDir, text)
	if err != nil {
		log.Fatal(err)
	}
	trusted, err := nix.ParsePublicKey("test-1:A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("trusted:", trusted.Verify(info.AppendFingerprint(nil), info.Signatures[0]))

	info.URL, info.Compression = "nar/"+info.Path.Hash().String()+".nar", nix.None
	fmt.Printf("%s", info.AppendText(nil))
	// Output:
	// trusted: true
	// StorePath: /nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt
	// URL: nar/i9pmrzmpshapij2kin22pff6fc2adavx.nar
	// Compression: none
	// NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
	// NarSize: 120
	// References: i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt
	// Sig: test-1:7XPm1uUkLvbcdSk/S0tLh5iLxKQ3PCPjFNI6hGMj3L3ngRR95wgP+dC1VG86lpPxmRWj26Pi1dPBl/iopaJaDQ==
}

func ExampleStoreDir_ParsePath() {
	path, err := nix.DefaultStoreDir.ParsePath("/nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(path.Hash(), path.Name())

	_, err = nix.DefaultStoreDir.ParsePath("/nix/store/../store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt")
	fmt.Println(err)
	// Output:
	// i9pmrzmpshapij2kin22pff6fc2adavx hello.txt
	// parse store path "/nix/store/../store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt": it does not begin with 32 characters of hash and a dash
}

func ExampleHash() {
	hash := nix.SHA256Sum(sha256.Sum256([]byte("hello\n")))
	fmt.Println(hash)
	fmt.Println(hash.SRI())
	fmt.Println(hash.Base16())
	// Output:
	// sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq
	// sha256-WJG1tSLV3whtD/CxEPvZ0hu0/HFjrzTQgoai6Eb2vgM=
	// 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
}

// The path that nix-store --add gives a file is computed from the hash of its NAR.
func ExampleContentAddress_StorePath() {
	address, err := nix.ParseContentAddress("fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw")
	if err != nil {
		log.Fatal(err)
	}
	path, err := address.StorePath(nix.DefaultStoreDir, "hello.txt", nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(path)
	// Output: /nix/store/i9pmrzmpshapij2kin22pff6fc2adavx-hello.txt
}

func ExampleSecretKey() {
	key, err := nix.ParseSecretKey("test-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8DoQe/884Qvh1w3RjnS8CZZ+TWMJulDV8d3IZkElUxuA==\n")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(key)
	fmt.Println(key.Public())
	// Output:
	// test-1:[redacted]
	// test-1:A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=
}
