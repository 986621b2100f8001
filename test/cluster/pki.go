package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority issues the certificates of a cluster into files of a directory.
type authority struct {
	dir         string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newAuthority makes the root, ca.crt in the directory.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key}
	a.certificate = template(pkix.Name{CommonName: "cluster"})
	a.certificate.IsCA, a.certificate.BasicConstraintsValid = true, true
	a.certificate.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	return a, a.sign("ca", a.certificate, key)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)) // never fails
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
}

// issue writes NAME.crt and NAME.key for a client and server of these addresses. User and group are what the API server
// takes the client for.
func (a *authority) issue(name, user, group string, addresses ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: user}
	if group != "" {
		subject.Organization = []string{group}
	}
	certificate := template(subject)
	certificate.KeyUsage = x509.KeyUsageDigitalSignature
	certificate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, address := range append(addresses, "127.0.0.1") {
		certificate.IPAddresses = append(certificate.IPAddresses, net.ParseIP(address))
	}
	return a.sign(name, certificate, key)
}

func (a *authority) sign(name string, certificate *x509.Certificate, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, certificate, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(a.crt(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(a.keyFile(name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
	)
}

func (a *authority) crt(name string) string     { return filepath.Join(a.dir, name+".crt") }
func (a *authority) keyFile(name string) string { return filepath.Join(a.dir, name+".key") }

// kubeconfig writes NAME.kubeconfig for a client by the certificate NAME.
func (a *authority) kubeconfig(name, server string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: cluster
clusters: [{name: cluster, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: user, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: cluster, context: {cluster: cluster, user: user}}]
`, server, a.crt("ca"), a.crt(name), a.keyFile(name))
	return os.WriteFile(a.kubeconfigFile(name), []byte(text), 0o600)
}

func (a *authority) kubeconfigFile(name string) string {
	return filepath.Join(a.dir, name+".kubeconfig")
}

// client is the TLS configuration of a client by the certificate NAME.
func (a *authority) client(name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(a.crt(name), a.keyFile(name))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(a.crt("ca"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, nil
}
