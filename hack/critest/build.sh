#!/usr/bin/env bash
# Builds critest, the Kubernetes conformance suite for CRI runtimes, and the ginkgo program that runs it in parallel,
# into .work/critest. The argument is the digest of the image that takes the place of the one compiled into critest.
#
# The constant is why this is a copy of the module: go build -overlay refuses to replace files of the module cache, and
# a tagged module with requirements of its own is built with exactly those.
set -euo pipefail
cd "$(dirname "$0")/../.."

digest=${1:?usage: build.sh sha256:DIGEST}
out=$PWD/.work/critest
if [ "$(cat "$out/built-for" 2>/dev/null)" = "$digest $(sha256sum <hack/tools/go.mod)" ]; then
	exit 0
fi
mkdir -p "$out"
rm -rf "$out/src" "$out/built-for"
module=$(cd hack/tools && go mod download sigs.k8s.io/cri-tools && go list -m -f '{{.Dir}}' sigs.k8s.io/cri-tools)
version=$(cd hack/tools && go list -m -f '{{.Version}}' sigs.k8s.io/cri-tools)
cp -r --no-preserve=mode "$module" "$out/src"
cd "$out/src"
consts=pkg/validate/consts.go
sed -i "s|^\(\s*testLinuxImageWithDigest .*@\)sha256:[0-9a-f]*|\1$digest|" $consts
grep -q "testLinuxImageWithDigest .*@$digest\"" $consts || { echo "critest: $consts has another form" >&2; exit 1; }
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
go test -c -trimpath -ldflags "-X sigs.k8s.io/cri-tools/pkg/version.Version=$version" -o "$out/critest" ./cmd/critest
go build -trimpath -o "$out/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
cd "$out/../.."
echo "$digest $(sha256sum <hack/tools/go.mod)" >"$out/built-for"
