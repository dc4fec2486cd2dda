//go:build race

package main

// rounds is how often each kind of race between processes is run. The race detector looks at one
// process at a time and makes each round ten times as long: a few show it all that they do.
const rounds = 30
