package imageservice

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

func TestCredentialsGoToTheirServer(t *testing.T) {
	for _, c := range []struct {
		server, host string
		meant        bool
	}{
		{"", "registry.example", true},
		{"registry.example", "registry.example", true},
		{"https://registry.example/v2/", "registry.example", true},
		{"http://Registry.Example:5000", "registry.example:5000", true},
		{"registry.example", "registry.example:5000", false},
		{"registry.example", "evil.example", false},
		{"https://index.docker.io/v1/", "registry-1.docker.io", true},
		{"docker.io", "registry-1.docker.io", true},
		{"docker.io", "quay.example", false},
	} {
		auth := &runtime.AuthConfig{Username: "u", Password: "p", ServerAddress: c.server}
		user, _, err := credentials(auth, c.host)
		if err != nil || (user != "") != c.meant {
			t.Errorf("server %q, host %q: user %q, %v", c.server, c.host, user, err)
		}
	}
}

func TestCredentialsForms(t *testing.T) {
	for _, c := range []struct {
		auth         *runtime.AuthConfig
		user, secret string
		bad          bool
	}{
		{auth: nil},
		{auth: &runtime.AuthConfig{}},
		{auth: &runtime.AuthConfig{Username: "u", Password: "p"}, user: "u", secret: "p"},
		{auth: &runtime.AuthConfig{Auth: "dTpw"}, user: "u", secret: "p"},
		{auth: &runtime.AuthConfig{IdentityToken: "refresh"}, secret: "refresh"},
		{auth: &runtime.AuthConfig{Auth: "!secret!"}, bad: true},
		{auth: &runtime.AuthConfig{Auth: "c2VjcmV0"}, bad: true},
	} {
		user, secret, err := credentials(c.auth, "registry.example")
		if user != c.user || secret != c.secret || (err != nil) != c.bad {
			t.Errorf("%v: %q %q %v", c.auth, user, secret, err)
		}
		if err != nil && (!errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("error %v", err)
		}
	}
}

func TestErrorsDoNotTellSignatures(t *testing.T) {
	inner := &url.Error{Op: "Get", URL: "https://store.example/blob?X-Signature=SECRET&x=1", Err: errors.New("reset")}
	err := describe(t.Context(), "app:1", fmt.Errorf("fetch: %w", inner))
	if strings.Contains(err.Error(), "SECRET") || !strings.Contains(err.Error(), "https://store.example/blob") {
		t.Errorf("error %v", err)
	}
}

func TestTimeoutOfTheNetworkIsNotTheCallers(t *testing.T) {
	dial := fmt.Errorf("dial: %w", context.DeadlineExceeded)
	if err := describe(t.Context(), "app:1", dial); errors.Is(err, context.DeadlineExceeded) ||
		!errors.Is(err, crierrors.ErrRegistryUnavailable) {
		t.Errorf("error %v", err)
	}
	over, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	if err := describe(over, "app:1", dial); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestJoinedErrorsBecomeOneLine(t *testing.T) {
	if got := clean("broken\naborted\nbroken\ncontext canceled\nother"); got != "broken; other" {
		t.Errorf("got %q", got)
	}
}

func TestKeyedMutexObeysContext(t *testing.T) {
	m := newKeyedMutex()
	check(t, m.Lock(t.Context(), "a"))
	check(t, m.Lock(t.Context(), "b"))
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Lock(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	locked := make(chan error)
	go func() { locked <- m.Lock(context.Background(), "a") }()
	m.Unlock("a")
	check(t, <-locked)
	m.Unlock("a")
	m.Unlock("b")
	if len(m.held) != 0 {
		t.Errorf("%d keys are kept", len(m.held))
	}
}
