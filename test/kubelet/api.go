package kubelet

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Get gets a path from the kubelet's server.
func (k *Kubelet) Get(ctx context.Context, path string) ([]byte, error) {
	return k.ask(ctx, http.MethodGet, path)
}

// URL is the address of a path on the kubelet's server, of the scheme https.
func (k *Kubelet) URL(path string) string { return fmt.Sprintf("https://127.0.0.1:%d%s", k.Port, path) }

func (k *Kubelet) ask(ctx context.Context, method, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, k.URL(path), nil)
	if err != nil {
		return nil, err
	}
	response, err := k.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, body)
	}
	return body, nil
}

// Logs is the log of a container as the kubelet's server gives it. Query has the parameters of kubectl logs: previous,
// tailLines, sinceSeconds, timestamps, limitBytes.
func (p *Pod) Logs(ctx context.Context, container string, query url.Values) (string, error) {
	path := fmt.Sprintf("/containerLogs/%s/%s/%s?%s", Namespace, p.Name, container, query.Encode())
	b, err := p.kubelet.Get(ctx, path)
	return string(b), err
}

// Run runs a command in a container by the kubelet's /run, which is ExecSync, and returns its output.
func (p *Pod) Run(ctx context.Context, container string, command string) (string, error) {
	path := fmt.Sprintf("/run/%s/%s/%s?%s", Namespace, p.Name, container, url.Values{"cmd": {command}}.Encode())
	b, err := p.kubelet.ask(ctx, http.MethodPost, path)
	return string(b), err
}
