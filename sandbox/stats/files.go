package stats

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// files counts the open files of a cgroup's processes; nil where there are none.
func (c *cgroups) files(r *reader, cgroup string) *Files {
	var pids []int
	walkCgroups(c.processDir(cgroup), func(dir string) {
		content, err := r.read(dir + "/cgroup.procs")
		if err != nil {
			return
		}
		for line := range bytes.SplitSeq(content, []byte{'\n'}) {
			// 0 stands for a process of another PID namespace.
			if pid, ok := number(line); ok && pid != 0 {
				pids = append(pids, int(pid))
			}
		}
	})
	if len(pids) == 0 {
		return nil
	}
	result := &Files{}
	for _, pid := range pids {
		result.addProcess(pid)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(pids[0], unix.RLIMIT_NOFILE, nil, &limit); err == nil {
		result.Limit = limit.Cur
	}
	return result
}

func (f *Files) addProcess(pid int) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return // it ended
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	target := make([]byte, len("socket:["))
	for _, name := range names {
		f.Open++
		n, err := unix.Readlinkat(int(dir.Fd()), name, target)
		if err == nil && strings.HasPrefix(string(target[:n]), "socket:[") {
			f.Sockets++
		}
	}
}
