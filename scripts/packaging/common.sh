# What the build scripts share: where they build, what they take from Debian, and stamps of what has been built.
#
# Sourced with $project set. Everything is made in build/packages, and what is to be given away is put into dist.
build="$project/build/packages"
dist="$project/dist"
packaging="$project/scripts/packaging"
python="$build/venv/bin/python"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$project/fastmasq/__init__.py")
architecture=$(uname -m)
mkdir -p "$build" "$dist"

say() { printf '== %s\n' "$*"; }
fail() { printf 'scripts/%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# $@: Debian packages that must be there
need_debian() {
    local package missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || fail "as root, install: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=120 update
    apt-get -q -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}"
}

checksum() { sha256sum -- "$@" | cut -d' ' -f1 | sha256sum | cut -d' ' -f1; } # of contents, wherever they lie

# $1: name of the stamp, $2: what it must contain, $3...: files that must be there
is_current() {
    local file
    [ "$(cat "$build/$1.stamp" 2>/dev/null)" = "$2" ] || return 1
    for file in "${@:3}"; do [ -e "$file" ] || return 1; done
}
stamp() { printf '%s\n' "$2" >"$build/$1.stamp"; }

pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

# Debian's own Python: one that was built by hand may look for its library by an absolute path.
make_environment() {
    local state
    need_debian python3 python3-venv python3-dev gcc libc6-dev
    state="$(/usr/bin/python3 -V) $(checksum "$packaging/requirements.txt")"
    is_current environment "$state" "$python" && return 0
    say "making the environment that packages are built in"
    rm -rf "$build/venv" "$build"/{numpy,bundle}.stamp
    /usr/bin/python3 -m venv "$build/venv"
    pip install --requirement "$packaging/requirements.txt"
    stamp environment "$state"
}
