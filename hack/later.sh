#!/usr/bin/env bash
# later.sh DIR PACKAGE...: unpacks packages of a later Debian release, with the libraries that they need, below DIR. They
# are not installed: what runs them has to name DIR's loader and libraries.
set -euo pipefail

suite=forky
dir=$(realpath -m "$1")
shift
uri=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 !~ /-/ {print $1; exit}')
rm -rf "$dir/apt"
mkdir -p "$dir"/apt/{lists/partial,archives/partial} "$dir/root"
touch "$dir/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$dir/apt/sources.list"
cat >"$dir/apt/apt.conf" <<-EOF
	Dir::State "$dir/apt";
	Dir::State::status "$dir/apt/status";
	Dir::Cache "$dir/apt";
	Dir::Etc::sourcelist "$dir/apt/sources.list";
	Dir::Etc::sourceparts "-";
	Acquire::Languages "none";
	APT::Install-Recommends "false";
	APT::Sandbox::User "root";
EOF
export APT_CONFIG=$dir/apt/apt.conf
apt-get update -qq
apt-get install -y -qq --no-install-recommends --download-only "$@" >/dev/null
for package in "$dir"/apt/archives/*.deb; do
	dpkg-deb -x "$package" "$dir/root"
done
rm -rf "$dir/apt"
