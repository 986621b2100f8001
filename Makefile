# The targets are few on purpose; each says what it needs. `make help` lists them.
SHELL   := /bin/bash
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)
GOBUILD := go build -trimpath -buildvcs=false

# The keeper is re-executed for every container: small, static, and the only program with cgo in it.
KEEPER_TAGS    := seccomp netgo osusergo
KEEPER_LDFLAGS := $(LDFLAGS) -s -w -linkmode external -extldflags=-static

CRI_TOOLS := $(shell sed -n 's|^\tsigs.k8s.io/cri-tools \(v[^ ]*\).*|\1|p' hack/tools/go.mod)
CONTAINERD := $(shell sed -n 's|^\tgithub.com/containerd/containerd/v2 \(v[^ ]*\).*|\1|p' hack/peers/go.mod)
PLUGINS   := main/bridge main/loopback ipam/host-local meta/portmap meta/firewall
TOOLS_MOD := hack/tools/go.mod hack/tools/go.sum

# Kubernetes programs for tests, unmodified; the linker says the version as in a release.
KUBERNETES   := $(shell sed -n 's|^\tk8s.io/kubernetes \(v[^ ]*\).*|\1|p' hack/k8s/go.mod)
K8S_LDFLAGS  := -s -w $(foreach v,gitVersion=$(KUBERNETES) gitMajor=1 gitMinor=$(word 2,$(subst ., ,$(KUBERNETES))), \
	-X k8s.io/component-base/version.$v)
K8S_BUILD    := cd hack/k8s && CGO_ENABLED=0 nice -n 5 $(GOBUILD) -ldflags '$(K8S_LDFLAGS)' -o ../../.work/bin/

# Where make install puts what it installs; DESTDIR goes before all of it.
PREFIX     ?= /usr/local
UNITDIR    ?= $(if $(filter /usr,$(PREFIX)),/usr/lib,/etc)/systemd/system
SYSCONFDIR ?= /etc
ROOT        = $(DESTDIR)$(PREFIX)

# A tag is the version; anything else sorts before the first one. A hyphen would begin Debian's own revision.
export DEB_VERSION := $(shell echo '$(VERSION)' | sed -E '/^v?[0-9]+\.[0-9]+\.[0-9]+/!s/^/0.0.0+git./; s/^v//; s/-/./g')
export GOARCH      := $(shell go env GOARCH)

.DEFAULT_GOAL := help
.PHONY: help deps build docs install uninstall deb tools test unit fuzz e2e system run critest k8s kubelet-test kubelet-short peers bench bench-vs vm-test lint clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

deps: ## install the Debian packages that are missing (needs root if any is)
	@hack/deps.sh

build: bin/cni/bridge programs ## build gantryd, gantry, gantry-keeper and the CNI plugins into bin/

.PHONY: programs
programs:
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/gantryd ./cmd/gantryd
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS)' -o bin/gantry ./cmd/gantry
	CGO_ENABLED=1 $(GOBUILD) -tags '$(KEEPER_TAGS)' -ldflags '$(KEEPER_LDFLAGS)' -o bin/gantry-keeper ./cmd/gantry-keeper
	@stat -c '%n is %s bytes' bin/gantry-keeper

docs: build ## man pages, shell completions and the default configuration, into .work/docs
	rm -rf .work/docs && mkdir -p .work/docs/man
	go run -tags docs -ldflags '$(LDFLAGS)' ./cmd/gantry .work/docs/man
	go run -tags docs -ldflags '$(LDFLAGS)' ./cmd/gantryd .work/docs/man
	gzip -n9 .work/docs/man/*
	@for program in gantry gantryd; do for shell in bash zsh fish; do \
		bin/$$program completion $$shell >.work/docs/$$program.$$shell || exit 1; \
	done; done
	bin/gantryd config default | sed '/^\[/!s/^[^#]/#&/' >.work/docs/config.toml # the keys are comments: defaults may change

install: docs ## install below PREFIX (default /usr/local) and DESTDIR; starts nothing, keeps a configuration that is there
	install -D -m 755 -t $(ROOT)/bin bin/gantryd bin/gantry-keeper bin/gantry
	install -D -m 755 -t $(ROOT)/lib/gantry/cni bin/cni/*
	install -D -m 644 -t $(ROOT)/share/man/man1 .work/docs/man/*.1.gz
	install -D -m 644 -t $(ROOT)/share/man/man8 .work/docs/man/*.8.gz
	install -D -m 644 -t $(ROOT)/share/doc/gantry README.md CHANGELOG.md LICENSE
	@for program in gantry gantryd; do \
		install -D -m 644 .work/docs/$$program.bash $(ROOT)/share/bash-completion/completions/$$program && \
		install -D -m 644 .work/docs/$$program.zsh $(ROOT)/share/zsh/site-functions/_$$program && \
		install -D -m 644 .work/docs/$$program.fish $(ROOT)/share/fish/vendor_completions.d/$$program.fish || exit 1; \
	done
	install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/gantry/conf.d $(DESTDIR)$(SYSCONFDIR)/gantry/certs.d
	sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/gantryd.service >$(DESTDIR)$(UNITDIR)/gantryd.service
	[ -e $(DESTDIR)$(SYSCONFDIR)/gantry/config.toml ] || \
		install -m 644 .work/docs/config.toml $(DESTDIR)$(SYSCONFDIR)/gantry/config.toml

uninstall: ## remove what install installed; configuration, images and records stay
	rm -f $(addprefix $(ROOT)/bin/,gantryd gantry-keeper gantry) $(DESTDIR)$(UNITDIR)/gantryd.service
	rm -rf $(ROOT)/lib/gantry $(ROOT)/share/doc/gantry
	rm -f $(ROOT)/share/man/man1/gantry.1.gz $(ROOT)/share/man/man1/gantry-*.1.gz $(ROOT)/share/man/man8/gantryd*.8.gz
	rm -f $(ROOT)/share/bash-completion/completions/gantry $(ROOT)/share/bash-completion/completions/gantryd
	rm -f $(ROOT)/share/zsh/site-functions/_gantry $(ROOT)/share/zsh/site-functions/_gantryd
	rm -f $(ROOT)/share/fish/vendor_completions.d/gantry.fish $(ROOT)/share/fish/vendor_completions.d/gantryd.fish

deb: .work/bin/nfpm ## build the Debian package bin/gantry_<version>_<arch>.deb
	rm -rf .work/dist bin/gantry_*.deb
	$(MAKE) --no-print-directory install DESTDIR=.work/dist PREFIX=/usr
	rm -rf .work/dist/etc # configuration is the package's to declare
	cd .work/dist/usr/share/doc/gantry && rm LICENSE && gzip -n9 CHANGELOG.md && mv CHANGELOG.md.gz changelog.gz
	install -m 644 packaging/deb/copyright .work/dist/usr/share/doc/gantry/
	.work/bin/nfpm package --config packaging/nfpm.yaml --packager deb --target bin/

.PHONY: kind
kind: build ## what a node image of kind needs, into .work/kind: docker build makes the image from it
	rm -rf .work/kind && mkdir -p .work/kind
	cp -r hack/kind/Dockerfile hack/kind/install.sh hack/kind/files bin/gantryd bin/gantry bin/gantry-keeper .work/kind/
	CGO_ENABLED=0 $(GOBUILD) -ldflags '$(LDFLAGS)' -o .work/kind/ctr ./hack/kind/ctr

tools: .work/bin/crictl ## build crictl and the test registry into .work/bin

test: deps build tools ## everything: deps, build, unit tests with -race, end-to-end tests, critest, a kubelet, a cluster (needs root)
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory fuzz
	$(MAKE) --no-print-directory e2e
	$(MAKE) --no-print-directory critest
	$(MAKE) --no-print-directory kubelet-short
	$(MAKE) --no-print-directory cluster-short

unit: ## unit tests with the race detector; those of the keeper also on cgroup v2
	go test -race -tags seccomp -timeout 20m ./...
	hack/unified.sh go test -tags seccomp -count=1 -timeout 20m ./sandbox/keeperd

# Package, test and number of inputs. A time in place of a number makes Go before 1.27 fail now and then, at its end and with
# "context deadline exceeded" (go.dev/issue/75804).
FUZZ := ./cri FuzzRequest 3000x  ./cri FuzzRecord 1500x  ./sandbox/spec FuzzBuild 8000x \
	./sandbox/crilog FuzzFormatKeepsEveryByte 80000x

fuzz: ## every fuzz test for some seconds, or for FUZZTIME, such as 1m or 100000x
	@set -- $(FUZZ); while [ $$# -gt 0 ]; do \
		go test -run '^$$' -fuzz "^$$2$$" -fuzztime $${FUZZTIME:-$$3} $$1 || exit 1; \
		shift 3; \
	done

e2e: build tools ## end-to-end tests against the built programs, in namespaces of their own (needs root)
	go test -tags e2e -count=1 -v -timeout 40m ./test/e2e/
	go test -tags e2e -count=1 -v -timeout 10m ./test/bench/

system: build tools deb kind .work/systemd-root/.complete ## tests of package, unit and kind on a booted systemd (needs root)
	go test -tags e2e -count=1 -v -timeout 20m ./test/system/

run: deps build tools ## a node to try: registry, gantryd, one pod; Ctrl-C removes it all (needs root)
	@go build -o .work/bin/demo ./hack/demo
	@.work/bin/demo

critest: build tools ## run the Kubernetes CRI conformance suite (needs root); ARGS are passed to critest
	go run ./hack/critest -- $(ARGS)

k8s: .work/bin/kubelet .work/bin/kube-apiserver .work/bin/kube-scheduler .work/bin/etcd ## build Kubernetes into .work/bin (many minutes the first time)

KUBELET_TEST := go test -tags e2e -count=1 -v -parallel 60 -timeout 30m ./test/kubelet/

kubelet-test: build tools .work/bin/kubelet .work/bin/kube-apiserver .work/bin/kube-scheduler .work/bin/etcd ## a real kubelet on the daemon, with three sets of gates (needs root)
	$(KUBELET_TEST)
	$(KUBELET_TEST) -gates EventedPLEG=true,CRIListStreaming=true
	$(KUBELET_TEST) -gates PodAndContainerStatsFromCRI=true

kubelet-short: build tools .work/bin/kubelet ## the same with the default gates and without an API server (needs root)
	$(KUBELET_TEST) -short

CLUSTER_TOOLS := .work/bin/kubelet .work/bin/kube-apiserver .work/bin/kube-scheduler .work/bin/etcd
CLUSTER_TEST  := go test -tags e2e -count=1 -v -timeout 40m ./test/cluster/

.PHONY: cluster cluster-test cluster-down cluster-short
cluster: build tools $(CLUSTER_TOOLS) .work/bin/metrics-server ## start a Kubernetes cluster of three nodes on this machine (needs root)
	go build -o .work/bin/gantry-cluster ./test/cluster
	.work/bin/gantry-cluster up -metrics

cluster-test: ## test the cluster that make cluster started, or one that is started for it (needs root)
	@[ -e .work/cluster/cluster.json ] || $(MAKE) --no-print-directory cluster
	$(CLUSTER_TEST)

cluster-down: ## end the cluster and say what it left behind (needs root)
	.work/bin/gantry-cluster down

cluster-short: build tools $(CLUSTER_TOOLS) ## start a cluster, test the most important things, end it (needs root)
	go build -o .work/bin/gantry-cluster ./test/cluster
	$(CLUSTER_TEST) -short

peers: .work/peers/containerd .work/peers/crio ## build the runtimes to compare with into .work/peers (many minutes the first time)

bench: build tools ## measure the daemon, in namespaces of its own (needs root); ARGS are passed to the program
	go build -o .work/bin/gantry-bench ./test/bench
	.work/bin/gantry-bench -runtimes gantry $(ARGS)

bench-vs: build tools peers ## measure containerd with runc, CRI-O with crun and the daemon in turn (needs root); ARGS as above
	go build -o .work/bin/gantry-bench ./test/bench
	.work/bin/gantry-bench -runtimes containerd,crio,gantry $(ARGS)

.PHONY: ablation
ablation: build tools ## measure what each technique brings by taking it away (needs root, half an hour); ARGS as above
	go build -o .work/bin/gantry-bench ./test/bench
	hack/ablate.sh $(ARGS)

vm-test: build tools .work/bin/kubelet ## test a node with systemd, cgroup v2 and AppArmor in an emulated machine (needs root, takes about two hours)
	@hack/deps.sh vm
	go run ./hack/vm $(ARGS)

lint: .work/bin/staticcheck ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	go vet -tags e2e ./...
	.work/bin/staticcheck -tags e2e -checks inherit,-SA1019 ./... # the CRI's deprecated fields have to be honoured

clean: ## remove what the other targets built
	rm -rf bin .work

bin/cni/bridge: $(TOOLS_MOD)
	mkdir -p bin/cni
	cd hack/tools && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../bin/cni/ \
		$(addprefix github.com/containernetworking/plugins/plugins/,$(PLUGINS))
	@touch $@

.work/bin/crictl: $(TOOLS_MOD)
	mkdir -p .work/bin
	cd hack/tools && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRI_TOOLS)' \
		-o ../../.work/bin/ sigs.k8s.io/cri-tools/cmd/crictl github.com/distribution/distribution/v3/cmd/registry
	@touch $@

.work/bin/kubelet: hack/k8s/go.mod hack/k8s/go.sum
	mkdir -p .work/bin
	$(K8S_BUILD) $(addprefix k8s.io/kubernetes/,cmd/kubelet test/images/agnhost)
	@touch $@

.work/bin/kube-apiserver: hack/k8s/go.mod hack/k8s/go.sum
	mkdir -p .work/bin
	$(K8S_BUILD) $(addprefix k8s.io/kubernetes/cmd/,kube-apiserver kubectl)
	@touch $@

.work/bin/kube-scheduler: hack/k8s/go.mod hack/k8s/go.sum
	mkdir -p .work/bin
	$(K8S_BUILD) $(addprefix k8s.io/kubernetes/cmd/,kube-controller-manager kube-scheduler kube-proxy)
	@touch $@

.work/bin/etcd: hack/etcd/go.mod hack/etcd/go.sum
	mkdir -p .work/bin
	cd hack/etcd && CGO_ENABLED=0 nice -n 5 $(GOBUILD) -ldflags '-s -w' -o ../../.work/bin/etcd go.etcd.io/etcd/server/v3
	@touch $@

.work/bin/metrics-server: hack/metrics/go.mod hack/metrics/go.sum
	mkdir -p .work/bin
	cd hack/metrics && CGO_ENABLED=0 nice -n 5 $(GOBUILD) -ldflags '-s -w' -o ../../.work/bin/ \
		sigs.k8s.io/metrics-server/cmd/metrics-server
	@touch $@

.work/bin/nfpm: hack/nfpm/go.mod hack/nfpm/go.sum
	mkdir -p .work/bin
	cd hack/nfpm && CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o ../../.work/bin/ github.com/goreleaser/nfpm/v2/cmd/nfpm
	@touch $@

.work/systemd-root/.complete: hack/systemd/root.sh
	hack/systemd/root.sh .work/systemd-root

.work/peers/containerd: hack/peers/go.mod hack/peers/go.sum
	mkdir -p .work/peers
	cd hack/peers && CGO_ENABLED=0 nice -n 5 $(GOBUILD) -tags 'no_btrfs no_devmapper no_zfs no_aufs' \
		-ldflags '-s -w -X github.com/containerd/containerd/v2/version.Version=$(CONTAINERD)' -o ../../.work/peers/ \
		$(addprefix github.com/containerd/containerd/v2/cmd/,containerd containerd-shim-runc-v2 ctr)
	cd hack/peers && CGO_ENABLED=1 nice -n 5 $(GOBUILD) -tags 'seccomp netgo osusergo' \
		-ldflags '-s -w -linkmode external -extldflags=-static' -o ../../.work/peers/ github.com/opencontainers/runc
	@touch $@

.work/peers/crio: hack/crio/go.mod hack/crio/go.sum hack/crio.sh hack/later.sh
	cd hack/crio && CGO_ENABLED=1 nice -n 5 $(GOBUILD) -tags 'seccomp containers_image_openpgp exclude_graphdriver_btrfs' \
		-ldflags '-s -w' -o ../../.work/peers/ github.com/cri-o/cri-o/cmd/crio
	hack/crio.sh .work/peers
	@touch $@

.work/bin/staticcheck: $(TOOLS_MOD)
	mkdir -p .work/bin
	cd hack/tools && CGO_ENABLED=0 $(GOBUILD) -o ../../.work/bin/ honnef.co/go/tools/cmd/staticcheck
	@touch $@
