#!/usr/bin/env bash
# Unpacks packages of this machine's Debian into a folder, for tests that need a file of them; nothing is installed.
# Usage: unpack_packages.sh TARGET_FOLDER PACKAGE ...      They use the libraries of the machine.
set -euo pipefail

target=$1
shift
[[ -e $target/complete ]] && exit 0
command -v apt-get dpkg-deb > /dev/null
rm -rf "$target"
mkdir -p "$target/packages"
cd "$target/packages"
# The lists may be missing in an image, or old; only root may renew them.
apt-get download -q "$@" > /dev/null 2>&1 || { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get download -q "$@"; } > /dev/null 2>&1
for package in *.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$target" --exclude='./usr/share/doc' --exclude='./usr/share/locale' --exclude='./usr/share/man'
done
rm -r "$target/packages"
touch "$target/complete"
