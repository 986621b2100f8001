package keeperd

import (
	"testing"

	"github.com/opencontainers/cgroups"
)

func TestPIDsAreUnlimitedUnlessLimited(t *testing.T) {
	ten, unlimited := int64(10), int64(-1)
	for _, test := range []struct {
		r    cgroups.Resources
		want *int64
	}{
		{cgroups.Resources{}, &unlimited},
		{cgroups.Resources{PidsLimit: &ten}, &ten},
		{cgroups.Resources{Unified: map[string]string{"pids.max": "77"}}, nil},
	} {
		unlimitPIDs(&test.r)
		if got := test.r.PidsLimit; (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%+v: limit %v, expected %v", test.r, got, test.want)
		}
	}
}
