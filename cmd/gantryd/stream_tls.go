package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"
)

// selfSignedLife is how long a self-signed certificate is valid: longer than a daemon runs.
const selfSignedLife = 10 * 365 * 24 * time.Hour

// streamTLSConfig returns how the stream server speaks TLS; nil where it does not. It does not offer HTTP/2, which has
// no upgrade to streams.
func streamTLSConfig(config *StreamConfig) (*tls.Config, error) {
	switch config.TLS {
	case streamTLSSelfSigned:
		certificate, err := selfSigned(config.Address)
		if err != nil {
			return nil, fmt.Errorf("make the certificate of the stream server: %w", err)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}}, nil
	case streamTLSFiles:
		load := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			certificate, err := tls.LoadX509KeyPair(config.CertFile, config.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("load the certificate of the stream server: %w", err)
			}
			return &certificate, nil
		}
		// Now too: what is wrong is to stop the start. Later it is read again, since certificates are replaced.
		if _, err := load(nil); err != nil {
			return nil, err
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: load}, nil
	}
	return nil, nil
}

// selfSigned makes a certificate for an address and localhost.
func selfSigned(address string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "gantryd streams"},
		// A clock that is set later must not make it one of the future.
		NotBefore:   time.Now().Add(-24 * time.Hour),
		NotAfter:    time.Now().Add(selfSignedLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = []net.IP{ip}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
