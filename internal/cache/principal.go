package cache

// Rights that a principal may have in a cache. Their values are kept in catalogs.
type Rights uint8

const (
	Read  Rights = 1 << iota // get what a private cache has; everybody may read a public one
	Push                     // add to it; whoever may push may read
	Admin                    // see what only operators should, such as what a server does for others; whoever may do that may push
)

// A Principal is who a request comes from, with what it may do.
type Principal interface {
	// Name is for logs, "" of one that has not said who it is.
	Name() string
	// May reports whether it has all of these rights in the cache of this name, beside what everybody has.
	May(rights Rights, cache string) bool
}

// Anybody is the principal that has not said who it is.
var Anybody Principal = anybody{}

type anybody struct{}

func (anybody) Name() string            { return "" }
func (anybody) May(Rights, string) bool { return false }
