package stats

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox"
)

// files are contents by path.
type contents map[string]string

// write makes the files below dir.
func (c contents) write(t *testing.T, dir string) {
	t.Helper()
	for path, content := range c {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const pressureText = "some avg10=1.50 avg60=2.00 avg300=0.25 total=7000000\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3000000\n"

// v1Files is the cgroup /pod/c in the hierarchies of cgroup v1, with one of v2 beside them.
func v1Files() contents {
	return contents{
		"cpuacct/pod/c/cpuacct.usage":              "5000000000\n",
		"cpuacct/pod/c/cpuacct.stat":               "user 300\nsystem 200\n",
		"cpu/pod/c/cpu.stat":                       "nr_periods 10\nnr_throttled 4\nthrottled_time 2000000000\nnr_bursts 0\nburst_time 0\n",
		"cpu/pod/c/cpu.cfs_period_us":              "100000\n",
		"cpu/pod/c/cpu.cfs_quota_us":               "20000\n",
		"cpu/pod/c/cpu.shares":                     "1024\n",
		"memory/pod/c/memory.usage_in_bytes":       "10485760\n",
		"memory/pod/c/memory.max_usage_in_bytes":   "20971520\n",
		"memory/pod/c/memory.limit_in_bytes":       "67108864\n",
		"memory/pod/c/memory.soft_limit_in_bytes":  "9223372036854771712\n",
		"memory/pod/c/memory.memsw.limit_in_bytes": "100663296\n",
		"memory/pod/c/memory.kmem.usage_in_bytes":  "4096\n",
		"memory/pod/c/memory.failcnt":              "3\n",
		"memory/pod/c/memory.oom_control":          "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory/pod/c/memory.stat": "cache 1\nrss 2\npgfault 50\npgmajfault 1\ninactive_file 1\n" +
			"total_cache 6291456\ntotal_rss 4194304\ntotal_mapped_file 8192\ntotal_swap 12288\n" +
			"total_pgfault 60\ntotal_pgmajfault 2\ntotal_active_file 1048576\ntotal_inactive_file 2097152\n",
		"blkio/pod/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
		"blkio/pod/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\n8:16 Read 9\nTotal 12\n",
		"pids/pod/c/pids.current":                               "7\n",
		"pids/pod/c/pids.max":                                   "max\n",
		"pids/pod/c/cgroup.procs":                               "10\n11\n",
		"pids/pod/c/inner/cgroup.procs":                         "12\n",
		"hugetlb/pod/c/hugetlb.2MB.usage_in_bytes":              "2097152\n",
		"hugetlb/pod/c/hugetlb.2MB.max_usage_in_bytes":          "4194304\n",
		"unified/pod/c/cpu.pressure":                            pressureText,
		"unified/pod/c/memory.pressure":                         pressureText,
		"unified/pod/c/io.pressure":                             pressureText,
	}
}

// v2Files is the cgroup /pod/c in the hierarchy of cgroup v2.
func v2Files() contents {
	return contents{
		"pod/c/cpu.stat": "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 4\n" +
			"throttled_usec 2000000\n",
		"pod/c/cpu.max":             "20000 100000\n",
		"pod/c/cpu.weight":          "39\n",
		"pod/c/memory.current":      "10485760\n",
		"pod/c/memory.peak":         "20971520\n",
		"pod/c/memory.max":          "67108864\n",
		"pod/c/memory.low":          "0\n",
		"pod/c/memory.swap.current": "12288\n",
		"pod/c/memory.swap.max":     "33554432\n",
		"pod/c/memory.events":       "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n",
		"pod/c/memory.stat": "anon 4194304\nfile 6291456\nkernel 4096\nfile_mapped 8192\nactive_file 1048576\ninactive_file 2097152\n" +
			"pgfault 60\npgmajfault 2\n",
		"pod/c/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 rios=9\n",
		"pod/c/pids.current":        "7\n",
		"pod/c/pids.max":            "max\n",
		"pod/c/cgroup.procs":        "10\n11\n",
		"pod/c/inner/cgroup.procs":  "12\n",
		"pod/c/hugetlb.2MB.current": "2097152\n",
		"pod/c/cpu.pressure":        pressureText,
		"pod/c/memory.pressure":     pressureText,
		"pod/c/io.pressure":         pressureText,
	}
}

// fakeCgroups writes the files and gives what reads them.
func fakeCgroups(t *testing.T, unified bool, files contents) *cgroups {
	t.Helper()
	c := &cgroups{
		root: t.TempDir(), unified: unified, sizes: []string{"2MB"},
		devices: map[[2]uint64]string{{8, 0}: "/dev/sda", {8, 16}: ""},
	}
	c.pressure = c.root
	if !unified {
		c.pressure = filepath.Join(c.root, "unified")
	}
	files.write(t, c.root)
	return c
}

// fakeNode is a Source and an Images in memory.
type fakeNode struct {
	mu         sync.Mutex
	sandboxes  []*sandbox.SandboxStatus
	containers []*sandbox.ContainerStatus
	events     chan sandbox.Event
	measured   chan string
}

func newFakeNode() *fakeNode {
	return &fakeNode{events: make(chan sandbox.Event, 10), measured: make(chan string, 100)}
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *fakeNode) Sandboxes() []*sandbox.SandboxStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sandboxes
}

func (n *fakeNode) Containers() []*sandbox.ContainerStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.containers
}

func (n *fakeNode) Subscribe() (<-chan sandbox.Event, func()) { return n.events, func() {} }

func (n *fakeNode) SandboxCgroup(s *sandbox.SandboxStatus) string { return s.CgroupParent }

func (n *fakeNode) Usage(_ context.Context, id string) (bytes, inodes uint64, err error) {
	n.measured <- id
	return 8192, 2, nil
}

// layersMount is the filesystem of the layers: one that is there everywhere and that nothing is written to meanwhile.
const layersMount = "/dev"

func (n *fakeNode) FsInfo() *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{FsId: &runtime.FilesystemIdentifier{Mountpoint: layersMount}}
}

func runningContainer(id, cgroup string) *sandbox.ContainerStatus {
	return &sandbox.ContainerStatus{
		ID: id, SandboxID: "pod", State: sandbox.ContainerRunning, CgroupPath: cgroup, Config: &runtime.ContainerConfig{},
	}
}
