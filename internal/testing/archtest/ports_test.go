package archtest

import (
	"go/types"
	"strings"
	"testing"

	load "golang.org/x/tools/go/packages"
)

// maxMethods is how many methods a port may have, with those of the interfaces in it.
const maxMethods = 8

// TestPorts: no exported interface has more than maxMethods methods. A caller of one that has more
// cannot see what it is given, and a second implementation has to be written whole.
func TestPorts(t *testing.T) {
	all, err := load.Load(&load.Config{Mode: load.NeedName | load.NeedTypes | load.NeedImports | load.NeedDeps, Dir: "../../.."}, "./...")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, p := range all {
		for _, failed := range p.Errors {
			t.Error(failed)
		}
		for _, name := range p.Types.Scope().Names() {
			declared, ok := p.Types.Scope().Lookup(name).(*types.TypeName)
			if !ok || !declared.Exported() {
				continue
			}
			port, ok := declared.Type().Underlying().(*types.Interface)
			if !ok {
				continue
			}
			found++
			if n := port.NumMethods(); n > maxMethods {
				t.Errorf("%s.%s has %d methods, more than %d: divide it by who needs them", strings.TrimPrefix(p.PkgPath, module+"/"), name, n, maxMethods)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d exported interfaces were found", found)
	}
}
