package cache

import (
	"encoding/binary"
	"testing"

	"firn/nix"
)

func TestMemoryIsBounded(t *testing.T) {
	const limit = 1 << 20
	m := newMemory[int](limit, 100)
	key := func(i int) (h nix.PathHash) {
		binary.LittleEndian.PutUint32(h[:], uint32(i))
		return h
	}
	hot := key(1 << 30)
	m.put(hot, -1, 100)
	for i := range 100_000 {
		m.put(key(i), i, 100)
		if v, ok := m.get(hot); !ok || v != -1 {
			t.Fatalf("what is asked for all the time was forgotten after %d others", i)
		}
	}
	kept := int64(0)
	for i := range m.shards {
		s := &m.shards[i]
		kept += int64(len(s.young)+len(s.old)) * 100
	}
	if kept > limit+limit/10 {
		t.Errorf("%d bytes are kept, the limit is %d", kept, limit)
	}
	if kept < limit/4 {
		t.Errorf("%d bytes are kept, the limit is %d: much less than there is room for", kept, limit)
	}
	m.put(key(1<<20), 1, 101)
	if _, ok := m.get(key(1 << 20)); ok {
		t.Error("a value that costs more than one may is there")
	}
	if _, ok := m.get(key(0)); ok {
		t.Error("what was put first, and never asked for, is still there")
	}
	if v, ok := m.get(key(99_999)); !ok || v != 99_999 {
		t.Error("what was put last is not there")
	}
}
