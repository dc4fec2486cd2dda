package cache

import "context"

// Main is the name of the cache that there always is, and that answers at the root.
const Main = "main"

// A Registry finds the caches of a server. All methods may be called at once, for every request.
// A cache that was made, changed or deleted by another process is so within a second.
type Registry interface {
	// ByName returns the cache of this name. ErrNotFound if there is none.
	ByName(ctx context.Context, name string) (*Cache, error)

	// ByHost returns the cache that answers at the root of this host: the one that has the host name,
	// else [Main], or ErrNotFound where a server is told to refuse names that it does not know.
	// The host is as in the header of a request, with or without a port.
	ByHost(ctx context.Context, host string) (*Cache, error)

	// All returns all caches by name.
	All(ctx context.Context) ([]*Cache, error)
}

// Only returns the directory of one cache, which answers at the root of every host.
func Only(c *Cache) Registry { return only{c} }

type only struct{ cache *Cache }

func (o only) ByName(_ context.Context, name string) (*Cache, error) {
	if name != o.cache.Name() {
		return nil, ErrNotFound
	}
	return o.cache, nil
}

func (o only) ByHost(context.Context, string) (*Cache, error) { return o.cache, nil }
func (o only) All(context.Context) ([]*Cache, error)          { return []*Cache{o.cache}, nil }
