#!/usr/bin/env bash
# What only the tests need and no Python package brings: Chromium, nginx, MariaDB, MySQL and ClickHouse. Installed where
# this may be done; where not, the tests that need them are skipped and say so.
set -euo pipefail

# Install the first of some packages that can be had; returns 0 whatever came of it.
install() {
    local name=$1 package
    shift
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "Installing $name for the tests ..."
        export DEBIAN_FRONTEND=noninteractive
        for package in "$@"; do
            if apt-get install -y -qq --no-install-recommends "$package" > /dev/null 2>&1 ||
                { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$package"; } > /dev/null 2>&1; then
                return
            fi
        done
    fi
    echo "No $name here: the tests that need it will be skipped. Install a package named $1 to run them."
}

# Without windows it takes a fourth of the processor time.
command -v chromium-headless-shell chromium chromium-browser google-chrome > /dev/null ||
    install Chromium chromium-headless-shell chromium
command -v nginx > /dev/null || [ -x /usr/sbin/nginx ] || install nginx nginx-light
command -v mariadbd mysqld > /dev/null || [ -x /usr/sbin/mariadbd ] || install MariaDB mariadb-server-core

# MySQL and ClickHouse come from other releases of Debian, so they get folders of their own and change nothing else here.
# No option file of the machine's counts.
echo "Fetching MySQL and ClickHouse for the tests ..."
"$(dirname "$0")/fetch_server.sh" build/mysql unstable mysql-server-core usr/sbin/mysqld --no-defaults --basedir=ROOT/usr \
    --lc-messages-dir=ROOT/usr/share/mysql --character-sets-dir=ROOT/usr/share/mysql/charsets \
    --plugin-dir=ROOT/usr/lib/mysql/plugin --secure-file-priv=NULL ||
    echo "No MySQL here: the tests that need it will be skipped."
"$(dirname "$0")/fetch_server.sh" build/clickhouse bookworm clickhouse-server usr/sbin/clickhouse-server ||
    echo "No ClickHouse here: the tests that need it will be skipped."

# Single files of packages whose servers are not wanted here: MariaDB's plugin `disks`, Prometheus and promtool,
# PostgreSQL with pgnodemx.
"$(dirname "$0")/unpack_packages.sh" "$PWD/build/mariadb" mariadb-server ||
    echo "No plugin of MariaDB here: the tests that need it will be skipped."
"$(dirname "$0")/unpack_packages.sh" "$PWD/build/prometheus" prometheus prometheus-node-exporter ||
    echo "No Prometheus here: the tests that need it will be skipped."
"$(dirname "$0")/unpack_packages.sh" "$PWD/build/promtool" promtool ||
    echo "No promtool here: the tests that need it will be skipped."
"$(dirname "$0")/unpack_packages.sh" "$PWD/build/pgnodemx" postgresql-17 postgresql-17-pgnodemx ||
    echo "No pgnodemx for PostgreSQL here: the tests that need it will be skipped."
