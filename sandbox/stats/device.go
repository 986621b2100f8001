package stats

import (
	"fmt"
	"os"
	"strconv"
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

// hugePageSize names a size as the files of the hugetlb controller do: "2MB", "1GB".
func hugePageSize(kilobytes uint64) string {
	switch {
	case kilobytes >= 1<<20:
		return strconv.FormatUint(kilobytes>>20, 10) + "GB"
	case kilobytes >= 1<<10:
		return strconv.FormatUint(kilobytes>>10, 10) + "MB"
	}
	return strconv.FormatUint(kilobytes, 10) + "KB"
}
