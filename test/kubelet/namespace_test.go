//go:build e2e

package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func link(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestHostNamespaces(t *testing.T) {
	for _, test := range []struct{ field, ns string }{{"hostNetwork", "net"}, {"hostPID", "pid"}, {"hostIPC", "ipc"}} {
		t.Run(test.field, func(t *testing.T) {
			t.Parallel()
			p := start(t, fmt.Sprintf(`
%s: true
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`, test.field))
			p.running(t)
			for _, ns := range []string{"net", "pid", "ipc"} {
				same := p.shell(t, "main", "readlink /proc/self/ns/"+ns) == link(t, "/proc/self/ns/"+ns)
				wantEqual(t, ns+" namespace is the node's", same, ns == test.ns)
			}
		})
	}
}

func TestHostNetworkHasTheNodesName(t *testing.T) {
	t.Parallel()
	p := start(t, `
hostNetwork: true
dnsPolicy: Default
containers:
- {name: main, image: BUSYBOX, command: [httpd, -f, -p, "18081", -h, /etc]}`)
	p.running(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "hostname", p.shell(t, "main", "hostname"), host)
	wantContains(t, "answer", httpGet(t, "http://127.0.0.1:18081/passwd"), "root:x:0:0")
}

// httpGet gets an address, trying until there is an answer.
func httpGet(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body []byte
	eventually(t, "an answer from "+url, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	})
	return string(body)
}

func TestHostPort(t *testing.T) {
	t.Parallel()
	p := start(t, `
containers:
- name: main
  image: BUSYBOX
  command: [httpd, -f, -p, "80", -h, /etc]
  ports: [{containerPort: 80, hostPort: 18080}, {containerPort: 80, hostPort: 18082, hostIP: 127.0.0.1}]`)
	status := p.running(t)
	for _, address := range []string{"127.0.0.1:18080", NodeIP + ":18080", "127.0.0.1:18082", status.PodIP + ":80"} {
		wantContains(t, "answer from "+address, httpGet(t, "http://"+address+"/passwd"), "root:x:0:0")
	}
	p.deleteNow(t)
	eventually(t, "the rules of the host port to be gone", func() error { // the sandbox counts as stopped before its network
		rules, err := exec.Command("iptables-save", "-t", "nat").CombinedOutput()
		if err == nil && strings.Contains(string(rules), "18080") {
			err = fmt.Errorf("rules are\n%s", rules)
		}
		return err
	})
}

func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	server := startOn(t, shared, Manifest{Name: "reached", Spec: `
hostname: reached
containers:
- {name: main, image: BUSYBOX, command: [httpd, -f, -p, "80", -h, /etc]}`})
	client := start(t, `
hostname: named
subdomain: sub
hostAliases: [{ip: 10.1.2.3, hostnames: [alias]}]
dnsPolicy: None
dnsConfig: {nameservers: [10.9.9.9], searches: [one.test], options: [{name: ndots, value: "3"}]}
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	client.running(t)
	url := "http://" + server.running(t).PodIP + "/hostname"
	wantEqual(t, "answer", client.shell(t, "main", "for i in $(seq 300); do wget -q -O - "+url+" && exit; sleep 0.1; done; exit 1"), "reached")
	wantEqual(t, "hostname", client.shell(t, "main", "hostname"), "named")
	wantContains(t, "hosts", client.shell(t, "main", "cat /etc/hosts"), "10.1.2.3\talias")
	wantEqual(t, "resolv.conf", client.shell(t, "main", "cat /etc/resolv.conf"),
		"search one.test\nnameserver 10.9.9.9\noptions ndots:3")
}

func TestSharedProcessNamespace(t *testing.T) {
	t.Parallel()
	p := start(t, `
shareProcessNamespace: true
containers:
- {name: one, image: BUSYBOX, command: [sleep, "33333"]}
- {name: two, image: BUSYBOX, command: [sh, -c, "(sleep 0.1 &); exec sleep 44444"]}`)
	p.running(t)
	wantContains(t, "processes", p.shell(t, "two", "ps -o pid,args"), "sleep 33333")
	p.shell(t, "two", "kill -9 $(ps -o pid,args | awk '/sleep 33333/ && !/awk/ {print $1}')")
	p.wait(t, "a restart", func(s *Status) bool { return s.Container("one").RestartCount == 1 && s.Ready() })
	eventually(t, "all zombies to be reaped", func() error {
		if out := p.shell(t, "one", "ps -o stat | grep -c Z || true"); out != "0" {
			return fmt.Errorf("there are %s", out)
		}
		return nil
	})
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	p := start(t, `
securityContext:
  sysctls:
  - {name: kernel.shm_rmid_forced, value: "1"}
  - {name: net.ipv4.ip_local_port_range, value: "20000 21000"}
  - {name: net.core.somaxconn, value: "321"}
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	p.running(t)
	out := p.shell(t, "main", "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range net/core/somaxconn")
	wantEqual(t, "sysctls", out, "1\n20000\t21000\n321")
}

func TestForbiddenSysctlIsRejected(t *testing.T) {
	t.Parallel()
	p := start(t, `
securityContext: {sysctls: [{name: kernel.msgmax, value: "10000"}]}
containers:
- {name: main, image: BUSYBOX, command: [sleep, inf]}`)
	status := p.finished(t)
	wantEqual(t, "reason", status.Reason, "SysctlForbidden")
}
