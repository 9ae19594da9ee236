#!/usr/bin/env bash
# Puts Debian unstable's MySQL server, with libraries of its own, into a folder; the machine's packages and apt stay as they are.
# Usage: fetch_mysql.sh TARGET_FOLDER      then: TARGET_FOLDER/mysqld --version
set -euo pipefail

fail() { echo "fetch_mysql.sh: $*" >&2; exit 1; }

[[ $# -eq 1 && -n $1 ]] || fail "usage: fetch_mysql.sh TARGET_FOLDER"
mkdir -p "$1"
target=$(cd "$1" && pwd)
exec 9>"$target/.lock"
flock 9
if [[ -x $target/mysqld ]] && "$target/mysqld" --version >/dev/null 2>&1; then
    exit 0
fi
for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "no $tool here: a Debian machine is needed"
done

# The mirror of Debian's main archive (not its updates, not its security archive) that this machine's apt uses, with its keys.
read -r mirror keys < <(
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI) $(SIGNED_BY) $(RELEASE)' 'Identifier: Packages' 'Component: main' |
        awk '$NF !~ /[-\/]/ { print $1, $2; exit }'
) || fail "the machine's apt names no mirror of Debian"
[[ -e $keys ]] || keys=/usr/share/keyrings/debian-archive-keyring.gpg

rm -rf "$target"/.fetch.*
work=$(mktemp -d "$target/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache/archives/partial,root,none}
: >"$work/status"
printf 'Types: deb\nURIs: %s\nSuites: unstable\nComponents: main\nSigned-By: %s\n' "$mirror" "$keys" >"$work/unstable.sources"
# No package counts as installed, so that the whole closure is fetched, libc6 too.
apt=(apt-get -q -o Dir::Etc::SourceList="$work/unstable.sources" -o Dir::Etc::SourceParts="$work/none"
    -o Dir::Etc::Preferences="$work/none/none" -o Dir::Etc::PreferencesParts="$work/none"
    -o Dir::State="$work" -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status"
    -o Dir::State::extended_states="$work/extended_states" -o Dir::Cache="$work/cache" -o Dir::Log="$work"
    -o APT::Update::Error-Mode=any -o APT::Sandbox::User=root -o Acquire::Languages=none)
{ timeout 300 "${apt[@]}" update &&
    timeout 600 "${apt[@]}" install --yes --download-only --no-install-recommends mysql-server-core; } \
    >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; fail "mysql-server-core of Debian unstable cannot be had"; }

for package in "$work"/cache/archives/*.deb; do
    case $(basename "$package") in perl* | libperl* | *-base_*) continue ;; esac # only for its scripts
    dpkg-deb --fsys-tarfile "$package" | tar --extract --directory "$work/root" \
        --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/lib/*/gconv'
    basename "$package" >>"$work/root/PACKAGES"
done
[[ -x $work/root/usr/sbin/mysqld ]] || fail "the packages hold no usr/sbin/mysqld"
rm -rf "$target/root"
mv "$work/root" "$target/root"

# The folder's own loader and libraries, never the machine's; no option file of the machine's either.
cat >"$target/mysqld" <<'WRAPPER'
#!/usr/bin/env bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/root
libraries=$(dirname "$(ls -d "$root"/usr/lib/*/libc.so.6)")
exec "$(ls -d "$libraries"/ld-linux*.so.*)" --library-path "$libraries" "$root/usr/sbin/mysqld" --no-defaults \
    --basedir="$root/usr" --lc-messages-dir="$root/usr/share/mysql" --character-sets-dir="$root/usr/share/mysql/charsets" \
    --plugin-dir="$root/usr/lib/mysql/plugin" --secure-file-priv=NULL "$@"
WRAPPER
chmod +x "$target/mysqld"
"$target/mysqld" --version >/dev/null || fail "the server that was fetched does not start"
