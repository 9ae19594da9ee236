#!/usr/bin/env bash
# Puts a server of another Debian, with libraries of its own, into a folder; the machine's packages and apt stay as they are.
# Usage: fetch_server.sh TARGET_FOLDER SUITE PACKAGE PROGRAM [OPTION ...]
# PROGRAM is its path in the package; ROOT in options stands for the folder of the package's files.
set -euo pipefail

fail() { echo "fetch_server.sh: $*" >&2; exit 1; }

[[ $# -ge 4 && -n $1 ]] || fail "usage: fetch_server.sh TARGET_FOLDER SUITE PACKAGE PROGRAM [OPTION ...]"
suite=$2 package=$3 program=$4
name=$(basename "$program")
mkdir -p "$1"
target=$(cd "$1" && pwd)
shift 4
exec 9>"$target/.lock"
flock 9
[[ ! -x $target/$name ]] || exit 0
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
printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$suite" "$keys" >"$work/suite.sources"
# No package counts as installed, so that the whole closure is fetched, libc6 too.
apt=(apt-get -q -o Dir::Etc::SourceList="$work/suite.sources" -o Dir::Etc::SourceParts="$work/none"
    -o Dir::Etc::Preferences="$work/none/none" -o Dir::Etc::PreferencesParts="$work/none"
    -o Dir::State="$work" -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status"
    -o Dir::State::extended_states="$work/extended_states" -o Dir::Cache="$work/cache" -o Dir::Log="$work"
    -o APT::Update::Error-Mode=any -o APT::Sandbox::User=root -o Acquire::Languages=none)
{ timeout 300 "${apt[@]}" update &&
    timeout 600 "${apt[@]}" install --yes --download-only --no-install-recommends "$package"; } \
    >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; fail "$package of Debian $suite cannot be had"; }

for file in "$work"/cache/archives/*.deb; do
    case $(basename "$file") in perl* | libperl* | *-base_*) continue ;; esac # only for its scripts
    dpkg-deb --fsys-tarfile "$file" | tar --extract --directory "$work/root" \
        --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/lib/*/gconv'
    basename "$file" >>"$work/root/PACKAGES"
done
[[ -x $work/root/$program ]] || fail "the packages hold no $program"
rm -rf "$target/root"
mv "$work/root" "$target/root"

# The folder's own loader and libraries, never the machine's. Older releases have some of them outside usr.
shopt -s nullglob
cd "$target/root"
folders=({,usr/}lib/*-linux-gnu) loaders=({,usr/}lib/*-linux-gnu/ld-linux*.so.*)
libraries=$(printf ':%s' "${folders[@]/#/\$root/}")
"./${loaders[0]}" --library-path "${libraries//:\$root/:$target/root}" --list "./$program" >/dev/null ||
    fail "the server that was fetched lacks a library"
cat >"$target/.$name" <<WRAPPER
#!/usr/bin/env bash
set -euo pipefail
root=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)/root
exec "\$root/${loaders[0]}" --library-path "${libraries#:}" "\$root/$program" ${*//ROOT/\$root} "\$@"
WRAPPER
chmod +x "$target/.$name"
mv "$target/.$name" "$target/$name"
