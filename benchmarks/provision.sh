#!/usr/bin/env bash
# nchan, for reference: Debian's package, where we are root on Debian. Its service is not started.
set -euo pipefail
[ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends nginx libnginx-mod-nchan >/dev/null
else
    echo "nchan is left out: it needs Debian's nginx and libnginx-mod-nchan" >&2
fi
