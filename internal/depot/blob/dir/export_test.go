package dir

import "firn/internal/depot/blob"

// Vanish ends a writer as the end of its process does, and returns where its bytes are.
func Vanish(b blob.Writer) string {
	w := b.(*writer)
	w.close()
	return w.path
}
