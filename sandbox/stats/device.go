package stats

import (
	"fmt"
	"os"
	"strings"
)

// deviceName gives the path of a block device.
func deviceName(major, minor uint64) string {
	content, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			return "/dev/" + strings.TrimSpace(name)
		}
	}
	return ""
}
