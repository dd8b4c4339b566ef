#!/bin/sh
# What the tests need beside Python: Chromium for the page, Node and the real socket.io-client, bubblewrap, nginx.
# Installed where that is possible (Debian, as root); elsewhere it says what is missing, and the tests that need it are
# skipped, except in CI.
set -eu
cd "$(dirname "$0")"

debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1
}

wanted=""
command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 ||
    wanted="chromium fonts-dejavu-core"
command -v npm >/dev/null 2>&1 || wanted="$wanted nodejs npm"
command -v bwrap >/dev/null 2>&1 || wanted="$wanted bubblewrap"
command -v nginx >/dev/null 2>&1 || wanted="$wanted nginx-light"
if [ -n "$wanted" ] && debian; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted
elif [ -n "$wanted" ]; then
    echo "Not installed: $wanted. The tests that need it will be skipped." >&2
fi
if command -v npm >/dev/null 2>&1 && [ ! -d node/node_modules/socket.io-client ]; then
    (cd node && npm ci --silent) || echo "socket.io-client could not be installed; its tests will be skipped." >&2
fi
