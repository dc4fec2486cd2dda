package main

import "testing"

// Root is told how to run a command as the user whom the state belongs to: by name where that user
// has one.
func TestRunAs(t *testing.T) {
	for uid, want := range map[uint32]string{
		0:             "runuser -u root --",
		1_234_567_891: "setpriv --reuid=1234567891 --regid=7 --clear-groups",
	} {
		if _, got := runAs(uid, 7); got != want {
			t.Errorf("for the user %d it is %q, want %q", uid, got, want)
		}
	}
}
