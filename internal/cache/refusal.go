package cache

import (
	"fmt"
	"time"
)

// Refuse returns an error that is of a kind, one of the sentinel errors of this package, and whose text is meant for the client:
// it says what is wrong with what was asked or sent, and what was expected. The text of any other error stays inside.
func Refuse(kind error, format string, args ...any) error {
	return &Refusal{fmt.Sprintf(format, args...), kind}
}

// A Refusal is what [Refuse] returns. Match its kind with errors.Is.
type Refusal struct {
	text string
	kind error
}

// Text is for the client.
func (r *Refusal) Text() string { return r.text }

func (r *Refusal) Error() string { return r.kind.Error() + ": " + r.text }
func (r *Refusal) Unwrap() error { return r.kind }

// A TooOftenError refuses a client that has failed too often to say who it is.
type TooOftenError struct {
	Wait time.Duration // until it may try again
}

func (e *TooOftenError) Error() string { return fmt.Sprintf("too many failures: wait %s", e.Wait) }
