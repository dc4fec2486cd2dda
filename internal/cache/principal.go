package cache

import (
	"context"
	"strings"
)

// Rights that a principal may have in a cache. Their values are kept in catalogs.
type Rights uint8

const (
	Read  Rights = 1 << iota // get what a private cache has; everybody may read a public one
	Push                     // add to it; a principal that may push may read
	Admin                    // see what only operators should, such as what a server does for others; a principal that may do that may push
)

// A Principal is who a request comes from, with what it may do.
type Principal interface {
	// Name is for logs, "" of one that has not said who it is.
	Name() string
	// May reports whether it has all of these rights in the cache of this name, beside what everybody has.
	May(rights Rights, cache string) bool
}

// publisherKey is where a context has who publishes.
type publisherKey struct{}

// maxPublisher bounds the name of a publisher, in bytes: certificates have names of any length.
const maxPublisher = 200

// WithPublisher returns a context in which what is published is noted as published by name: that of
// a token or of an SSH key.
func WithPublisher(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, publisherKey{}, strings.ToValidUTF8(name[:min(len(name), maxPublisher)], ""))
}

// PublishedBy returns who publishes in ctx, for a [Sink]; "" if that is not known.
func PublishedBy(ctx context.Context) string {
	name, _ := ctx.Value(publisherKey{}).(string)
	return name
}

// Anybody is the principal that has not said who it is.
var Anybody Principal = anybody{}

type anybody struct{}

func (anybody) Name() string            { return "" }
func (anybody) May(Rights, string) bool { return false }
