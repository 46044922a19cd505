#!/usr/bin/env bash
# Installs Edge SDK on a Jetson: its own environment under /opt/edge-sdk, the wheels that fit the board's JetPack, a
# user without a login, a systemd service. Run it again after an update or when something went wrong: what is there is
# kept, what is missing is made. `install.sh --dry-run` prints every command and runs none.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run='' root='' wheels='' collect='' python='' service=yes
source=$(cd "$here/../.." && pwd)
prefix=/opt/edge-sdk user=edge-sdk

usage() {
    cat <<END
usage: install.sh [--dry-run] [--source FOLDER|WHEEL] [--wheels FOLDER] [--collect FOLDER]
                  [--python PROGRAM] [--prefix FOLDER] [--user NAME] [--no-service] [--root FOLDER]

  --dry-run      print the commands and run none of them
  --source       checkout or wheel of edge-sdk (default: the checkout of this script)
  --wheels       install from this folder of wheels, without any network
  --collect      fill such a folder for boards with the same JetPack, and install nothing
  --python       a Python 3.10 or newer (default: the one that the board's wheels are for)
  --prefix       where the environment goes (default: /opt/edge-sdk)
  --user         whom the service runs as (default: edge-sdk)
  --no-service   no user and no systemd service
  --root         another file system than this one: a recorded board, or an image that is being made

Ends with 0 when all is done, 2 when the board or the arguments are not what it can work with.
END
}

say() { echo "install.sh: $*"; }
refuse() { say "$*" >&2; exit 2; }
value() { [ $# -ge 2 ] && [ -n "$2" ] || refuse "$1 needs a value"; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=yes ;;
        --no-service) service='' ;;
        --source) value "$@"; source=$2; shift ;;
        --wheels) value "$@"; wheels=$2; shift ;;
        --collect) value "$@"; collect=$2; shift ;;
        --python) value "$@"; python=$2; shift ;;
        --prefix) value "$@"; prefix=$2; shift ;;
        --user) value "$@"; user=$2; shift ;;
        --root) value "$@"; root=${2%/}; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; refuse "unknown argument $1" ;;
    esac
    shift
done
venv=$root$prefix/venv site=(--system-site-packages)
# What the board has of its own may be missing on another: wheels are collected in an environment that does not see it.
if [ -n "$collect" ]; then venv=$collect/.venv site=(); fi

sudo=()
if [ "$(id -u)" != 0 ]; then sudo=(sudo); fi

run() { # runs a command, or prints it
    if [ -n "$dry_run" ]; then
        printf '+'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}
run_root() { run "${sudo[@]}" "$@"; }

# --- which board ---------------------------------------------------------------------------------------------------

l4t() { # prints the release, "36.4.3"
    local file=$root/etc/nv_tegra_release status=$root/var/lib/dpkg/status
    if [ -r "$file" ]; then
        sed -nE '1s/^# R([0-9]+) \(release\), REVISION: ([0-9.]+).*/\1.\2/p' "$file"
    elif [ -r "$status" ]; then
        awk -v RS= '/(^|\n)Package: nvidia-l4t-core\n/' "$status" | sed -nE 's/^Version: ([0-9.]+).*/\1/p'
    fi
}

release=$(l4t)
[ -n "$release" ] || refuse "no L4T release found: this is not a Jetson, or a container that hides /etc/nv_tegra_release"
case ${release%%.*} in
    32) jetpack=4 ;;
    35) jetpack=5 ;;
    36) jetpack=6 ;;
    38 | 39) jetpack=7 ;;
    *)
        [ "${release%%.*}" -gt 39 ] || refuse "L4T $release is not known to this release of edge-sdk"
        jetpack=7
        say "warning: L4T $release is newer than this release of edge-sdk knows; taken for JetPack 7"
        ;;
esac
case $jetpack in
    7) wanted=3.12 ;;
    *) wanted=3.10 ;;
esac
case $jetpack in
    4) extras='' say_what="senses and predicts on the CPU; PyTorch's wheels need a newer C library, so it does not train" ;;
    5) extras='[train]' say_what="senses, trains and predicts on the CPU" ;;
    *) extras='[train]' say_what="senses, trains and predicts with the GPU" ;;
esac
say "L4T $release, JetPack $jetpack: $say_what"

# --- Python --------------------------------------------------------------------------------------------------------

installed() { # is this Debian package installed on the board?
    local status=$root/var/lib/dpkg/status
    [ -r "$status" ] && awk -v RS= -v name="$1" '$0 ~ "(^|\n)Package: " name "\n" && /\nStatus: install ok installed/ { found = 1 }
        END { exit !found }' "$status"
}

install_debs() { # the board's own Python comes without venv; PortAudio is for microphones
    local missing=() name
    for name in "$@"; do installed "$name" || missing+=("$name"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ -n "$wheels" ]; then
        say "warning: not installed, and --wheels asks for no network: ${missing[*]}"
        return 0
    fi
    run_root apt-get -q update
    run_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
}

make_venv() {
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        say "kept ${venv#"$root"}"
        return
    fi
    run_root mkdir -p "$(dirname "$venv")"
    if [ -z "$python" ] && [ "$jetpack" -ge 6 ]; then python=python$wanted; fi
    if [ -n "$python" ]; then
        run_root "$python" -m venv "${site[@]}" "$venv"
    elif [ -n "$dry_run" ] || command -v uv >/dev/null; then
        run_root uv venv --seed --python "$wanted" "$venv"
    else
        refuse "JetPack $jetpack brings an older Python than $wanted: install uv, or name one with --python"
    fi
}

# --- wheels --------------------------------------------------------------------------------------------------------

lines_of() { sed -E '/^(#|--|[[:space:]]*$)/d' "$1"; } # the requirements in a file
index_of() { sed -nE 's/^--index-url (.+)/\1/p' "$1"; }

pip() { run_root "$venv/bin/python" -m pip "$@"; }

# NVIDIA's and PyTorch's builds come first and by themselves, so that nothing else is taken from their index.
accelerators=() index=()
if [ -f "$here/accelerators-jp$jetpack.txt" ]; then
    mapfile -t accelerators < <(lines_of "$here/accelerators-jp$jetpack.txt")
    index=(--index-url "$(index_of "$here/accelerators-jp$jetpack.txt")")
fi
mapfile -t requirements < <(lines_of "$here/requirements-jp$jetpack.txt")

install_wheels() {
    local offline=()
    if [ -n "$wheels" ]; then offline=(--no-index --find-links "$wheels") index=(); fi
    if [ ${#accelerators[@]} -gt 0 ]; then pip install --no-deps "${index[@]}" "${offline[@]}" "${accelerators[@]}"; fi
    pip install "${offline[@]}" "${requirements[@]}" "$package"
}

collect_wheels() { # of exactly what was installed: a second resolution might choose another build of the same version
    local line others=() name
    pip wheel --no-deps --wheel-dir "$collect" "$source"
    if [ ${#accelerators[@]} -gt 0 ]; then pip download --no-deps "${index[@]}" --dest "$collect" "${accelerators[@]}"; fi
    if [ -n "$dry_run" ]; then
        say "and pip download --no-deps of everything else that pip freeze --local names"
        return
    fi
    while read -r line; do
        name=${line%%[ =@]*}
        case " edge-sdk ${accelerators[*]} " in *" $name"[\ =]*) ;; *) others+=("$line") ;; esac
    done < <("$venv/bin/python" -m pip freeze --local)
    pip download --no-deps --dest "$collect" "${others[@]}"
}

package=$source$extras
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || refuse "$wheels: no such folder; --collect fills one"
    package=edge-sdk$extras
elif [ ! -f "$source/pyproject.toml" ] && [[ $source != *.whl ]]; then
    refuse "$source: neither a checkout nor a wheel of edge-sdk; name one with --source"
fi

if [ "$jetpack" -ge 6 ] && [ -z "$python" ]; then install_debs "python$wanted-venv" libportaudio2; else install_debs libportaudio2; fi
make_venv
install_wheels
if [ -n "$collect" ]; then
    collect_wheels
    run_root rm -rf "$venv"
    say "$collect holds the wheels for JetPack $jetpack; carry it to a board and install with --wheels"
    exit 0
fi

# --- service -------------------------------------------------------------------------------------------------------

copy() { # copies a file where it differs: copy FROM TO
    if cmp -s "$1" "$root$2"; then
        say "kept $2"
    else
        run_root install -D -m 644 "$1" "$root$2"
        changed=yes
    fi
}

make_user() {
    local group
    for group in dialout i2c video audio; do
        grep -q "^$group:" "$root/etc/group" 2>/dev/null || run_root groupadd --system --force "$group"
    done
    if grep -q "^$user:" "$root/etc/passwd" 2>/dev/null; then
        say "kept user $user"
        return
    fi
    run_root useradd --system --user-group --home-dir /var/lib/edge-sdk --shell /usr/sbin/nologin \
        --groups dialout,i2c,video,audio "$user"
}

if [ -n "$service" ]; then
    changed=''
    make_user
    unit=$(mktemp)
    trap 'rm -f "$unit"' EXIT
    sed -e "s|/opt/edge-sdk|$prefix|g" -e "s|^User=.*|User=$user|" "$here/edge-sdk.service" >"$unit"
    copy "$unit" /etc/systemd/system/edge-sdk.service
    run_root mkdir -p "$root/etc/edge-sdk"
    if [ -n "$changed" ]; then
        run_root systemctl daemon-reload
        run_root systemctl enable edge-sdk.service
    fi
    if [ -f "$root/etc/edge-sdk/device.toml" ]; then
        run_root systemctl restart edge-sdk.service
    else
        say "put the device's configuration into /etc/edge-sdk/device.toml, then: sudo systemctl start edge-sdk"
    fi
fi
say "done; what may still be wrong: $prefix/venv/bin/edge-sdk doctor"
