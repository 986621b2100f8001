# Runs the conformance suite against the installed daemon.
set -eu
mkdir -p /var/tmp/critest/.work
cd /var/tmp/critest
cp -r /payload/.work/critest .work
/payload/bin/critest -endpoint unix:///run/gantry/gantry.sock -- "$@"
