//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	refreshToken = "refresh-token-of-the-test"
	accessToken  = "access-token-of-the-test"
)

// tokenRegistry is the test registry behind a bearer token, with the token server that gives one for the refresh token
// (OAuth 2.0, RFC 6749 section 6, as registries have it: distribution's spec/auth/oauth).
type tokenRegistry struct {
	*httptest.Server
	mu       sync.Mutex
	requests []url.Values // of the token server
}

func startTokenRegistry(t *testing.T) *tokenRegistry {
	t.Helper()
	target, err := url.Parse("http://" + registry.Address)
	if err != nil {
		t.Fatal(err)
	}
	r := &tokenRegistry{}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", r.token)
	proxy := httputil.NewSingleHostReverseProxy(target)
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "Bearer "+accessToken {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(
				`Bearer realm="%s/token",service="test-registry",scope="repository:gantry/busybox:pull"`, r.URL))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		q.Header.Del("Authorization")
		proxy.ServeHTTP(w, q)
	})
	r.Server = httptest.NewServer(mux)
	t.Cleanup(r.Close)
	return r
}

func (r *tokenRegistry) token(w http.ResponseWriter, q *http.Request) {
	_ = q.ParseForm()
	r.mu.Lock()
	r.requests = append(r.requests, q.Form)
	r.mu.Unlock()
	if q.Method != http.MethodPost || q.Form.Get("grant_type") != "refresh_token" || q.Form.Get("refresh_token") != refreshToken {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": accessToken, "expires_in": 300})
}

// An identity token is exchanged for an access token at the server that the registry names; a registry token is sent as
// it is, to no token server.
func TestTokens(t *testing.T) {
	for _, test := range []struct {
		name    string
		auth    *runtime.AuthConfig
		good    bool
		granted int // requests to the token server
	}{
		{"no credentials", nil, false, 1},
		{"identity token", &runtime.AuthConfig{IdentityToken: refreshToken}, true, 1},
		{"wrong identity token", &runtime.AuthConfig{IdentityToken: "wrong-" + refreshToken}, false, 1},
		{"registry token", &runtime.AuthConfig{RegistryToken: accessToken}, true, 0},
		{"wrong registry token", &runtime.AuthConfig{RegistryToken: "wrong-" + accessToken}, false, 0},
		{"tokens of another server", &runtime.AuthConfig{
			IdentityToken: refreshToken, RegistryToken: accessToken, ServerAddress: "https://other.test",
		}, false, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := startTokenRegistry(t)
			host := mirror(t, "tokens-"+strings.ReplaceAll(test.name, " ", "-"), strings.TrimPrefix(server.URL, "http://"))
			ref := host + "/gantry/busybox:1"
			err := tryPull(t, ref, test.auth)
			if test.good && err != nil {
				t.Fatal(err)
			}
			if !test.good {
				if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied {
					t.Errorf("error has code %v: %v", code, err)
				}
				if err != nil && strings.Contains(err.Error(), "of-the-test") {
					t.Errorf("the error tells the token: %v", err)
				}
				wantNoImage(t, ref)
			}
			server.mu.Lock()
			defer server.mu.Unlock()
			if (len(server.requests) > 0) != (test.granted > 0) {
				t.Errorf("%d requests to the token server: %v", len(server.requests), server.requests)
			}
			for _, form := range server.requests {
				if test.good {
					wantEqual(t, "service", form.Get("service"), "test-registry")
					wantEqual(t, "scope", form.Get("scope"), "repository:gantry/busybox:pull")
				}
				if strings.Contains(form.Encode(), "of-the-test") && test.auth.GetServerAddress() != "" {
					t.Errorf("tokens of another server were sent: %v", form)
				}
			}
		})
	}
	log, err := os.ReadFile(shared.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "of-the-test") {
		t.Error("the daemon's log has a token in it")
	}
}
