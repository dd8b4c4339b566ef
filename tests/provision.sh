#!/bin/sh
# What the tests need beside Python: Chromium for the page. Installed where that is possible (Debian, as
# root); elsewhere it says what is missing, and the tests that need it are skipped, except in CI.
set -eu
if command -v chromium >/dev/null 2>&1 || command -v chromium-browser >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
else
    echo "Chromium is not installed: the tests that drive the page will be skipped." >&2
fi
