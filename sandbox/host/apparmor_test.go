package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestProfileLoaded(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	text := "gantry-default (enforce)\nname with (brackets) (complain)\n/usr/sbin/ntpd//child (enforce)\n"
	if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for profile, want := range map[string]bool{
		"gantry-default": true, "gantry": false, "name with (brackets)": true, "name with": false,
		"/usr/sbin/ntpd//child": true, "/usr/sbin/ntpd": false, ":other:missing": true, "one//&two": true,
	} {
		if got := profileLoaded(list, profile); got != want {
			t.Errorf("%q is loaded: %v, expected %v", profile, got, want)
		}
	}
	if !profileLoaded(list+".missing", "any") {
		t.Error("without a list the kernel is to decide")
	}
}
