//go:build e2e

package main

import (
	"fmt"
	"strings"
	"testing"
)

// web is a Service with a server on every node that tells its name and its client's address.
const web = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: AGNHOST
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 30}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`

func TestService(t *testing.T) {
	s := newSpace(t)
	s.apply(t, web+"---"+daemonSet("client"))
	s.rollout(t, "daemonset/web")
	s.rollout(t, "daemonset/client")
	service := s.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	port := s.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
	servers, clients := s.pods(t, "app=web"), s.pods(t, "app=client")
	for _, client := range clients {
		get := func(url string) (string, error) {
			out, err := s.try(timeout(t), "", "exec", client.name, "--", "timeout", "30", "wget", "-qO-", "http://"+url)
			return strings.TrimSpace(out), err
		}
		// By the service every server is reached in the end, whatever its node.
		missing := make(map[string]bool)
		for _, server := range servers {
			missing[server.name] = true
		}
		eventually(t, "answers of all servers to "+client.node, func() error {
			out, err := get(service + "/hostname")
			delete(missing, out)
			if err == nil && len(missing) > 0 {
				err = fmt.Errorf("none of %v", missing)
			}
			return err
		})
		// Pods reach each other without translation of addresses, between nodes too.
		for _, server := range servers {
			out, err := get(server.ip + ":8080/clientip")
			if host, _, _ := strings.Cut(out, ":"); err != nil || host != client.ip {
				t.Errorf("%s on %s sees %s on %s as %q, %v", server.name, server.node, client.ip, client.node, out, err)
			}
		}
		for i := range nodes(t) {
			node := fmt.Sprintf(nodeIPs, firstNodeIP+i)
			eventually(t, "the node port of "+node, func() error {
				out, err := get(node + ":" + port + "/hostname")
				if err == nil && !strings.HasPrefix(out, "web-") {
					err = fmt.Errorf("it says %q", out)
				}
				return err
			})
		}
	}
	// From outside of the nodes.
	wantContains(t, "answer of a node port", fetch(t, fmt.Sprintf(nodeIPs, firstNodeIP)+":"+port+"/hostname"), "web-")
}

// The API server is a Service, too, which pods reach with their account's token.
func TestServiceAccountReachesTheServer(t *testing.T) {
	s := newSpace(t)
	s.sleeper(t, "main")
	out := s.kubectl(t, "exec", "main", "--", "sh", "-c", `
		cd /var/run/secrets/kubernetes.io/serviceaccount && test -s token && test -s ca.crt && cat namespace; echo
		printf 'GET / HTTP/1.0\r\n\r\n' | timeout 60 nc $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT | head -c 20`)
	wantContains(t, "namespace", out, string(s))
	wantContains(t, "answer to plain text", out, "HTTP/1.0 400")
}
