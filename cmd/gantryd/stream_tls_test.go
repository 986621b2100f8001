package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// handshake connects to a server with config and returns the certificate that it shows; roots nil trusts any.
func handshake(t *testing.T, config *tls.Config, roots *x509.CertPool) *x509.Certificate {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _ = tls.Server(theirs, config).Handshake() }()
	client := tls.Client(ours, &tls.Config{ServerName: "127.0.0.1", RootCAs: roots, InsecureSkipVerify: roots == nil})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	return client.ConnectionState().PeerCertificates[0]
}

func TestSelfSignedCertificateIsForTheAddress(t *testing.T) {
	config, err := streamTLSConfig(&StreamConfig{Address: "127.0.0.1:0", TLS: streamTLSSelfSigned})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(handshake(t, config, nil))
	handshake(t, config, roots)
}

// writeCertificate writes a new certificate and its key, and returns the certificate.
func writeCertificate(t *testing.T, certFile, keyFile string) []byte {
	t.Helper()
	certificate, err := selfSigned("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate.Certificate[0]
}

func TestCertificateFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	stream := &StreamConfig{TLS: streamTLSFiles, CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k")}
	if _, err := streamTLSConfig(stream); err == nil {
		t.Error("files that do not exist: no error")
	}
	first := writeCertificate(t, stream.CertFile, stream.KeyFile)
	config, err := streamTLSConfig(stream)
	if err != nil {
		t.Fatal(err)
	}
	if got := handshake(t, config, nil); string(got.Raw) != string(first) {
		t.Error("another certificate than that of the file")
	}
	second := writeCertificate(t, stream.CertFile, stream.KeyFile)
	if got := handshake(t, config, nil); string(got.Raw) != string(second) {
		t.Error("a replaced certificate is not used")
	}
	if config, err := streamTLSConfig(&StreamConfig{TLS: streamTLSOff}); config != nil || err != nil {
		t.Errorf("off: %v, %v", config, err)
	}
}
