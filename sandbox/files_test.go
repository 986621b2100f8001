package sandbox

import (
	"os"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResolvConf(t *testing.T) {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		dns  *runtime.DNSConfig
		want string
	}{
		"nil means the node's":     {nil, string(host)},
		"empty means none":         {&runtime.DNSConfig{}, ""},
		"all that is given, as is": {&runtime.DNSConfig{Servers: []string{"10.0.0.1", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}, "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n"},
	} {
		got, err := resolvConf(tc.dns)
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %q, %v; expected %q", name, got, err, tc.want)
		}
	}
}
