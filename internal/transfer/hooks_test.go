package transfer

import "time"

// WithoutPauses has an import ask again at once.
func (o ImportOptions) WithoutPauses() ImportOptions {
	o.pause = time.Microsecond
	return o
}
