#!/usr/bin/env bash
# Chromium for the browser tests: installed where this may be done, else they are skipped and say so.
set -euo pipefail
if command -v chromium chromium-browser google-chrome > /dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing Chromium for the browser tests ..."
    export DEBIAN_FRONTEND=noninteractive
    if apt-get install -y -qq --no-install-recommends chromium > /dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1; then
        exit 0
    fi
fi
echo "No Chromium here: the browser tests will be skipped. Install a package named chromium to run them."
