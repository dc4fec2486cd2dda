//go:build !race

package main

// rounds is how often each kind of race between processes is run. Without protection, two halves of
// a cycle met in 2 of 100 where it was rarest.
const rounds = 300
