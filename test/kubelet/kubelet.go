package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Options say how a kubelet is run. Zero fields have the defaults that their comments name.
type Options struct {
	// Name and IP are those of its node; default "node" and NodeIP.
	Name, IP string
	// Dir is where its configuration, its static pods and its log are put; it has to exist.
	Dir string
	// Tools holds the kubelet program (make k8s builds it).
	Tools string
	// Endpoint is the socket of the runtime as a URL.
	Endpoint string
	// Runtime is a client of the runtime, which is asked whether a static pod has ended.
	Runtime runtime.RuntimeServiceClient
	// Root is its --root-dir; default /var/lib/kubelet. PodLogs is where it keeps pods' logs; default /var/log/pods.
	Root, PodLogs string
	// CgroupRoot is the cgroup below which it makes those of pods; default "/".
	CgroupRoot string
	// Port is that of its server; default 10250. The read-only server has Port+5, health checks Port-2.
	Port int
	// Kubeconfig is the file that says where the API server is; default none.
	Kubeconfig string
	// Gates are feature gates, on top of the kubelet's own defaults.
	Gates map[string]bool
	// Config is more of the KubeletConfiguration, in YAML without indentation; it wins over what the harness writes.
	Config map[string]string
	// Client is the client of its server; default one without credentials.
	Client *http.Client
	// Verbosity is its -v.
	Verbosity int
}

// Kubelet is a real kubelet. It runs the static pods that Create writes and, if it has an API server, its pods. Start, Stop and Kill are
// for one goroutine, everything else for any number.
type Kubelet struct {
	Options
	cmd    *exec.Cmd
	exited chan struct{}
	client *http.Client

	mu   sync.Mutex
	list []podItem // what /pods said
	when time.Time
}

// startTimeout is how long a kubelet may take until it answers: on an emulated machine its Go code is slow.
const startTimeout = 10 * time.Minute

// New makes the directories and the configuration of a kubelet. It is started by Start.
func New(opts Options) (*Kubelet, error) {
	setDefault(&opts.Root, "/var/lib/kubelet")
	setDefault(&opts.PodLogs, "/var/log/pods")
	setDefault(&opts.CgroupRoot, "/")
	setDefault(&opts.Name, "node")
	setDefault(&opts.IP, NodeIP)
	if opts.Port == 0 {
		opts.Port = 10250
	}
	k := &Kubelet{Options: opts}
	for _, dir := range []string{k.pods(), k.sysctls(), k.Root, k.PodLogs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(k.Dir, "resolv.conf"), []byte("nameserver "+k.IP+"\n"), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(k.configFile(), []byte(k.configuration()), 0o644); err != nil {
		return nil, err
	}
	if k.client = opts.Client; k.client == nil {
		// Streams keep their connections; the certificate is one that the kubelet makes for itself.
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		k.client = &http.Client{Transport: transport, Timeout: time.Minute}
	}
	return k, nil
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

func (k *Kubelet) pods() string       { return filepath.Join(k.Dir, "manifests") }
func (k *Kubelet) sysctls() string    { return filepath.Join(k.Dir, "sysctls") }
func (k *Kubelet) configFile() string { return filepath.Join(k.Dir, "kubelet.yaml") }

// LogFile is where the kubelet's messages go.
func (k *Kubelet) LogFile() string { return filepath.Join(k.Dir, "kubelet.log") }

// globalSysctls are what a kubelet sets at its start for the whole machine, and must not set here.
var globalSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// cover is a shell script that hides those behind ordinary files, seen by the kubelet only, and becomes the kubelet. Its
// mount namespace gives mounts of volumes to the others and gets theirs; /proc it keeps for itself.
const cover = `set -e
mount --make-rprivate /proc
cd "$1"; shift
for f in *; do mount --bind "$f" "/proc/sys/$(echo "$f" | tr . /)"; done
cd /
exec "$@"`

func (k *Kubelet) coverSysctls() error {
	for _, name := range globalSysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return err
		}
		file := filepath.Join(k.sysctls(), strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the kubelet and waits until it is healthy and lists pods. When it exits instead the error holds the end
// of its log.
func (k *Kubelet) Start(ctx context.Context) error {
	if err := k.coverSysctls(); err != nil {
		return err
	}
	log, err := os.OpenFile(k.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"--mount", "--propagation", "unchanged", "sh", "-c", cover, "sh", k.sysctls()}
	cmd := exec.Command("unshare", append(args, k.commandLine()...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start kubelet: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	k.cmd, k.exited = cmd, exited
	return k.waitHealthy(ctx)
}

func (k *Kubelet) waitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		_, err := k.Get(ctx, "/healthz")
		if err == nil {
			_, err = k.Get(ctx, "/pods")
		}
		if err == nil {
			return nil
		}
		select {
		case <-k.exited:
			return fmt.Errorf("kubelet: %v\n%s", k.cmd.ProcessState, k.LogTail())
		case <-ctx.Done():
			return fmt.Errorf("wait for kubelet: %w\n%s", err, k.LogTail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (k *Kubelet) commandLine() []string {
	args := []string{
		filepath.Join(k.Tools, "kubelet"), "--config=" + k.configFile(), "--root-dir=" + k.Root,
		"--hostname-override=" + k.Name, "--node-ip=" + k.IP, fmt.Sprintf("-v=%d", k.Verbosity),
	}
	if k.Kubeconfig != "" {
		args = append(args, "--kubeconfig="+k.Kubeconfig)
	}
	return args
}

// PID is the kubelet's process id.
func (k *Kubelet) PID() int { return k.cmd.Process.Pid }

// Running reports whether the kubelet runs.
func (k *Kubelet) Running() bool {
	if k.cmd == nil {
		return false
	}
	select {
	case <-k.exited:
		return false
	default:
		return true
	}
}

// Kill ends the kubelet by SIGKILL and waits until it is gone. Its pods go on.
func (k *Kubelet) Kill() {
	if k.cmd != nil {
		k.cmd.Process.Kill()
		<-k.exited
	}
}

// Stop ends the kubelet by SIGTERM. Its pods go on.
func (k *Kubelet) Stop() error {
	if !k.Running() {
		return nil
	}
	k.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-k.exited:
		return nil
	case <-time.After(time.Minute):
		k.Kill()
		return errors.New("the kubelet did not end within a minute of SIGTERM")
	}
}

// LogTail is the end of the kubelet's log.
func (k *Kubelet) LogTail() string {
	b, err := os.ReadFile(k.LogFile())
	if err != nil {
		return err.Error()
	}
	const most = 6000
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}
