package imageservice

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rangeSize is how much of a big layer one request asks for when several run at a time.
const rangeSize = 16 << 20

// registry is a conversation with the registry of one image and its mirrors, with the credentials of one pull.
type registry struct {
	service  *Service
	auth     *runtime.AuthConfig
	resolver remotes.Resolver
	ranged   remotes.Resolver // the same, fetching in ranges

	mu      sync.Mutex
	clients []*http.Client
}

func (s *Service) newRegistry(ctx context.Context, auth *runtime.AuthConfig) *registry {
	r := &registry{service: s, auth: auth}
	r.resolver = r.newResolver(ctx)
	r.ranged = r.newResolver(ctx,
		transfer.WithMaxConcurrentDownloads(s.config.MaxConcurrentDownloads),
		transfer.WithConcurrentLayerFetchBuffer(rangeSize))
	return r
}

func (r *registry) newResolver(ctx context.Context, options ...transfer.ImageResolverOption) remotes.Resolver {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(host string) ([]docker.RegistryHost, error) { return r.hosts(ctx, host) },
		Headers: http.Header{"User-Agent": []string{"gantry"}},
	})
	if configurable, ok := resolver.(remotes.ResolverWithOptions); ok {
		configurable.SetOptions(options...)
	}
	return resolver
}

// hosts says where to ask for the images of a registry: hosts.toml, else the registry itself.
func (r *registry) hosts(ctx context.Context, host string) ([]docker.RegistryHost, error) {
	options := config.HostOptions{Credentials: func(host string) (string, string, error) {
		return credentials(r.auth, host)
	}}
	if dir := r.service.config.RegistryConfigDir; dir != "" {
		options.HostDir = config.HostDirFromRoot(dir)
	}
	if local, err := docker.MatchLocalhost(host); err == nil && local {
		options.DefaultScheme = "http"
	}
	hosts, err := config.ConfigureHosts(ctx, options)(host)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", host, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range hosts {
		r.clients = append(r.clients, hosts[i].Client)
		if token := r.auth.GetRegistryToken(); token != "" && meant(r.auth, hosts[i].Host) {
			hosts[i].Authorizer = bearer{host: hosts[i].Host, token: token}
		}
	}
	return hosts, nil
}

// close gives connections back.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, client := range r.clients {
		client.CloseIdleConnections()
	}
}

// resolve asks which manifest or index a name stands for.
func (r *registry) resolve(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	idle := r.service.config.PullProgressTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, idle, fmt.Errorf("%w for %s", errStalled, idle))
	defer cancel()
	_, target, err := r.resolver.Resolve(ctx, ref)
	if err != nil {
		return target, causeOf(ctx, err)
	}
	return target, nil
}

func (r *registry) fetcher(ctx context.Context, p *pull) (remotes.Fetcher, error) {
	whole, err := r.resolver.Fetcher(ctx, p.ref)
	if err != nil {
		return nil, err
	}
	ranged, err := r.ranged.Fetcher(ctx, p.ref)
	if err != nil {
		return nil, err
	}
	return watchedFetcher{
		fetcher: rangeFetcher{whole: whole, ranged: ranged},
		idle:    r.service.config.PullProgressTimeout,
		report:  p.report,
	}, nil
}

// credentials returns what the kubelet's credentials give for a host: user and password, or "" and a refresh token.
// Errors: errdefs.ErrInvalidArgument; they never contain a secret.
func credentials(auth *runtime.AuthConfig, host string) (user, secret string, err error) {
	if auth == nil || !meant(auth, host) {
		return "", "", nil
	}
	if auth.Username != "" {
		return auth.Username, auth.Password, nil
	}
	if auth.IdentityToken != "" {
		return "", auth.IdentityToken, nil
	}
	if auth.Auth == "" {
		return "", "", nil
	}
	decoded, err := base64.StdEncoding.DecodeString(auth.Auth)
	if err != nil {
		return "", "", fmt.Errorf("field auth of the credentials: expected base64: %w", errdefs.ErrInvalidArgument)
	}
	user, secret, ok := strings.Cut(string(decoded), ":")
	if !ok {
		return "", "", fmt.Errorf("field auth of the credentials: expected user:password in base64: %w",
			errdefs.ErrInvalidArgument)
	}
	return user, strings.Trim(secret, "\x00"), nil
}

// meant tells whether credentials may be shown to a host.
func meant(auth *runtime.AuthConfig, host string) bool {
	if auth.GetServerAddress() == "" {
		return true
	}
	return canonicalHost(auth.GetServerAddress()) == canonicalHost(host)
}

// canonicalHost strips scheme and path, and knows the names that the default registry goes by.
func canonicalHost(address string) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	switch u.Host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return strings.ToLower(u.Host)
}

// bearer sends a token as it is, to one host.
type bearer struct {
	host, token string
}

// Authorize adds the token, unless the request was redirected to another host.
func (b bearer) Authorize(_ context.Context, request *http.Request) error {
	if request.URL.Host == b.host {
		request.Header.Set("Authorization", "Bearer "+b.token)
	}
	return nil
}

// AddResponses is called when the token was refused: there is no other.
func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}
