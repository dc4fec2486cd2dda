// Package registry finds the caches of a server. It makes a cache from each record of the catalog, on the depot,
// on the local store where there is one, or on both, and replaces the cache when the record has changed.
//
//	err := registry.Prepare(ctx, cat, depot, store.StoreDir())
//	all, err := registry.New(ctx, cat, depot, registry.Options{Local: store, Keys: keys})
//	c, err := all.ByHost(ctx, request.Host)
//
// Commands beside the server change records. The version of the catalog says cheaply that nothing has changed;
// on a server that many push to, it says so rarely, and then the records are read at most ten times a second.
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"firn/internal/cache"
	"firn/internal/catalog"
	"firn/internal/depot"
	"firn/internal/memo"
	"firn/nix"
)

const (
	// interval is how long a change of a record may go unnoticed while something else was changed just before.
	interval = 100 * time.Millisecond

	// defaultPriority is that of a cache of which nobody says one: before cache.nixos.org, which has 40.
	defaultPriority = 30

	// otherMemory bounds the bytes of narinfos that a cache besides main remembers, of which there may be many.
	otherMemory = 4 << 20
)

// Options of a Registry. The zero Options will do.
type Options struct {
	// Local is the source of the caches that have catalog.SourceLocal. Nil: there is none, and they go without.
	Local cache.Source

	// LocalLeftOut says that there is a local store, or may be one, which the caches go without all
	// the same: what pushed paths refer to is taken to be there.
	LocalLeftOut bool

	// Encoder and Compress are for what Local serves, as in cache.Options.
	Encoder  cache.Encoder
	Compress bool

	// Keys sign what the cache main serves, beside those of its record.
	Keys []nix.SecretKey

	// Priority is that of the cache main. Zero is a priority.
	Priority int

	// RefuseUnknown has ByHost find nothing for a host name that no cache has.
	RefuseUnknown bool

	// Logger is told what goes wrong. Nil discards.
	Logger *slog.Logger
}

// A Catalog has the records of caches.
type Catalog interface {
	catalog.Database
	catalog.Caches
}

// Registry finds caches. It is safe for concurrent use.
type Registry struct {
	catalog Catalog
	depot   *depot.Depot
	local   cache.Source // Options.Local
	log     *slog.Logger
	looks   *cache.LookMemory

	now  atomic.Pointer[snapshot] // never nil
	keys sync.Map                 // the names of all keys that sign or have signed since the start
	mu   sync.Mutex               // held while another snapshot is made
	opts Options                  // guarded by mu
}

var _ cache.Registry = (*Registry)(nil)

// A snapshot is the caches as they were once. It does not change.
type snapshot struct {
	version memo.Version // of the catalog
	made    time.Time
	refuse  bool // Options.RefuseUnknown
	failed  bool // what came after it could not be read

	all    []*member // by name
	byName map[string]*cache.Cache
	byHost map[string]*cache.Cache
	main   *cache.Cache
}

// A member is a cache with the record that it was made of.
type member struct {
	record *catalog.Cache
	cache  *cache.Cache
}

// New returns the directory of the caches in the catalog, whose bytes are in the depot. [Prepare] has made the cache main.
// An error says what keeps the cache main from being served; what is wrong with others is logged.
func New(ctx context.Context, cat Catalog, d *depot.Depot, opts Options) (*Registry, error) {
	dir := &Registry{catalog: cat, depot: d, local: opts.Local, opts: opts, looks: cache.NewLookMemory(), log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))}
	s, err := dir.make(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("open caches: %w", err)
	}
	dir.now.Store(s)
	return dir, nil
}

// Change takes Keys, Priority and RefuseUnknown of opts in place of those that there were. What is being answered goes on as it was.
// With an error nothing has changed.
func (d *Registry) Change(ctx context.Context, opts Options) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.opts
	d.opts.Keys, d.opts.Priority, d.opts.RefuseUnknown = opts.Keys, opts.Priority, opts.RefuseUnknown
	last := *d.now.Load()
	last.all = slices.DeleteFunc(slices.Clone(last.all), func(m *member) bool { return m.record.Name == cache.Main }) // to be built again
	s, err := d.make(ctx, &last)
	if err != nil {
		d.opts = before
		return fmt.Errorf("change caches: %w", err)
	}
	d.now.Store(s)
	return nil
}

// Record returns the record that a cache of this name begins with.
func Record(name string) *catalog.Cache {
	return &catalog.Cache{
		Name:     name,
		StoreDir: nix.DefaultStoreDir,
		Sources:  []string{catalog.SourceDepot},
		Priority: defaultPriority,
		Created:  time.Now().UTC().Truncate(time.Second),
	}
}

// Prepare makes the record of [cache.Main] if there is none, and fits it to the store directory of
// this machine, "" if that is not known: it is that of the cache, unless the depot keeps paths of
// another one.
func Prepare(ctx context.Context, cat Catalog, d *depot.Depot, dir nix.StoreDir) error {
	if err := prepare(ctx, cat, d, dir); err != nil {
		return fmt.Errorf("prepare cache %s: %w", cache.Main, err)
	}
	return nil
}

func prepare(ctx context.Context, cat Catalog, d *depot.Depot, dir nix.StoreDir) error {
	record, err := find(ctx, cat, cache.Main, dir)
	if err != nil {
		return err
	}
	if dir == "" || !slices.Contains(record.Sources, catalog.SourceLocal) || dir == record.StoreDir {
		return nil
	}
	there, err := d.For(record).IsThere(ctx)
	if err != nil {
		return err
	}
	if there {
		return fmt.Errorf("it keeps paths of %s, and the store directory of this machine is %s: serve another store with --store, set NIX_STORE_DIR, or use another state directory with --state",
			record.StoreDir, dir)
	}
	changed := *record
	changed.StoreDir = dir
	if err := cat.SetCache(ctx, record, &changed); !errors.Is(err, catalog.ErrChanged) {
		return err
	}
	return prepare(ctx, cat, d, dir) // with what another process has made of it
}

// Records returns the records of all caches. It makes that of [cache.Main] if there is none.
func Records(ctx context.Context, cat catalog.Caches) ([]*catalog.Cache, error) {
	return records(ctx, cat, "")
}

// records is Records, with the store directory for the record of main if it makes that; "" is Nix's default.
func records(ctx context.Context, cat catalog.Caches, dir nix.StoreDir) ([]*catalog.Cache, error) {
	for {
		all, err := cat.AllCaches(ctx)
		if err != nil || named(all, cache.Main) != nil {
			return all, err
		}
		main := Record(cache.Main)
		main.Sources = []string{catalog.SourceLocal, catalog.SourceDepot}
		main.StoreDir = cmp.Or(dir, main.StoreDir)
		if err := cat.AddCache(ctx, main); err != nil && !errors.Is(err, catalog.ErrConflict) { // another process was faster
			return nil, err
		}
	}
}

func named(all []*catalog.Cache, name string) *catalog.Cache {
	if i := slices.IndexFunc(all, func(r *catalog.Cache) bool { return r.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

// Find returns the record of a cache. cache.ErrNotFound if there is none of this name; there is always one of main.
func Find(ctx context.Context, cat catalog.Caches, name string) (*catalog.Cache, error) {
	return find(ctx, cat, name, "")
}

func find(ctx context.Context, cat catalog.Caches, name string, dir nix.StoreDir) (*catalog.Cache, error) {
	all, err := records(ctx, cat, dir)
	if err != nil {
		return nil, err
	}
	if r := named(all, name); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("find cache %q: %w", name, cache.ErrNotFound)
}

// ByName returns the cache of this name. cache.ErrNotFound if there is none.
func (d *Registry) ByName(ctx context.Context, name string) (*cache.Cache, error) {
	s := d.current(ctx, false)
	c, ok := s.byName[name]
	if !ok { // it may have been made just now
		c, ok = d.current(ctx, true).byName[name]
	}
	if !ok {
		return nil, fmt.Errorf("find cache %q: %w", name, cache.ErrNotFound)
	}
	return c, nil
}

// ByHost returns the cache that has this host name, else main, or cache.ErrNotFound with Options.RefuseUnknown.
func (d *Registry) ByHost(ctx context.Context, host string) (*cache.Cache, error) {
	s := d.current(ctx, false)
	if len(s.byHost) > 0 {
		if c, ok := s.byHost[HostName(host)]; ok {
			return c, nil
		}
	}
	if s.refuse {
		return nil, fmt.Errorf("find cache of host %q: %w", host, cache.ErrNotFound)
	}
	return s.main, nil
}

// Hosts returns the host names of all caches, in order.
func (d *Registry) Hosts(ctx context.Context) []string {
	return slices.Sorted(maps.Keys(d.current(ctx, true).byHost))
}

// All returns all caches by name.
func (d *Registry) All(ctx context.Context) ([]*cache.Cache, error) {
	s := d.current(ctx, true)
	all := make([]*cache.Cache, len(s.all))
	for i, m := range s.all {
		all[i] = m.cache
	}
	return all, nil
}

// HostName returns the form in which host names are compared, of one as in the header of a request: without a port
// and the dot at its end, in lower case.
func HostName(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// current returns a snapshot of the records as they are now, or were at most an interval ago; with at once, as they are now.
// If that cannot be told, it is the last one that could be made: who may read and push does not change by that,
// and the local store can be served without the catalog.
func (d *Registry) current(ctx context.Context, atOnce bool) *snapshot {
	s := d.now.Load()
	if d.isCurrent(ctx, s, atOnce) {
		return s
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s = d.now.Load()
	if d.isCurrent(ctx, s, atOnce) { // whoever held the mutex made it
		return s
	}
	// The snapshot is for everybody: that this client goes away is no reason to do without.
	next, err := d.make(context.WithoutCancel(ctx), s)
	if err != nil {
		d.log.Error("the caches could not be read again and stay as they were", "error", err)
		again := *s
		again.made, again.failed = time.Now(), true
		next = &again
	}
	d.now.Store(next)
	return next
}

func (d *Registry) isCurrent(ctx context.Context, s *snapshot, atOnce bool) bool {
	now := d.catalog.Version(ctx)
	if s.version.Hit(now) {
		return true
	}
	if atOnce && now.Freshness != memo.Unknown && !s.failed {
		return false
	}
	return time.Since(s.made) < interval
}

// make makes a snapshot, with the caches of the last one whose records have not changed.
func (d *Registry) make(ctx context.Context, last *snapshot) (*snapshot, error) {
	s := &snapshot{made: time.Now(), refuse: d.opts.RefuseUnknown, byName: map[string]*cache.Cache{}, byHost: map[string]*cache.Cache{}}
	s.version = d.catalog.Version(ctx) // before the records are read
	records, err := d.catalog.AllCaches(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range d.opts.Keys {
		d.keys.Store(k.Name(), true)
	}
	for _, r := range records {
		for _, k := range r.Keys {
			d.keys.Store(k.Name(), true)
		}
		m := last.member(r)
		if m == nil {
			c, err := d.build(r)
			if err != nil {
				if r.Name == cache.Main {
					return nil, err
				}
				d.log.Error("a cache is not served", "cache", r.Name, "error", err)
				continue
			}
			m = &member{r, c}
		}
		s.all = append(s.all, m)
		s.byName[r.Name] = m.cache
		for _, host := range r.Hosts {
			s.byHost[host] = m.cache
		}
		if r.Name == cache.Main {
			s.main = m.cache
		}
	}
	if s.main == nil {
		return nil, fmt.Errorf("find cache %s: %w", cache.Main, cache.ErrNotFound)
	}
	return s, nil
}

// member returns the member that was made of this very record, nil if there is none.
func (s *snapshot) member(r *catalog.Cache) *member {
	if s == nil {
		return nil
	}
	i := slices.IndexFunc(s.all, func(m *member) bool { return m.record.ID == r.ID })
	if i < 0 || !s.all[i].record.Equal(r) {
		return nil
	}
	return s.all[i]
}

// isKey reports whether a key of any cache has this name.
func (d *Registry) isKey(name string) bool {
	_, ok := d.keys.Load(name)
	return ok
}

// build makes a cache of a record.
func (d *Registry) build(r *catalog.Cache) (*cache.Cache, error) {
	opts := cache.Options{
		Name:                   r.Name,
		Private:                r.Private,
		AllowMissingReferences: r.AllowMissingReferences,
		Keys:                   slices.Clone(r.Keys),
		Reserved:               d.isKey,
		Priority:               r.Priority,
		Memory:                 otherMemory,
		Looks:                  d.looks,
		Encoder:                d.opts.Encoder,
		Compress:               d.opts.Compress,
		SourcesLeftOut:         d.opts.LocalLeftOut && slices.Contains(r.Sources, catalog.SourceLocal),
		Logger:                 d.log,
	}
	if r.Name == cache.Main {
		opts.Priority, opts.Memory = d.opts.Priority, 0
		opts.Keys = Keys(d.opts.Keys, r)
	}
	var sources []cache.Source
	for _, name := range r.Sources {
		switch {
		case name == catalog.SourceDepot:
			part := d.depot.For(r)
			opts.Sink = cache.SinkOf(part)
			sources = append(sources, part)
		case name == catalog.SourceLocal && d.opts.Local == nil:
		case name == catalog.SourceLocal && d.opts.Local.StoreDir() != r.StoreDir:
			d.log.Warn("a cache goes without the local store, which is in another store directory",
				"cache", r.Name, "store", string(d.opts.Local.StoreDir()), "want", string(r.StoreDir))
		case name == catalog.SourceLocal:
			sources = append(sources, d.opts.Local)
		default:
			return nil, fmt.Errorf("cache %s: there is no source named %q", r.Name, name)
		}
	}
	c, err := cache.New(sources, opts)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", r.Name, err)
	}
	return c, nil
}

// Keys returns what signs the cache main: the given keys, and those of its record under other names.
func Keys(given []nix.SecretKey, record *catalog.Cache) []nix.SecretKey {
	keys := slices.Clone(given)
	for _, k := range record.Keys {
		if !slices.ContainsFunc(keys, func(g nix.SecretKey) bool { return g.Name() == k.Name() }) {
			keys = append(keys, k)
		}
	}
	return keys
}
