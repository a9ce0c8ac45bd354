#!/bin/sh
# Sets up what `make` needs: Debian packages (as root) and a virtual environment. Called by the Makefile.
set -eu

say() { echo "setup: $*" >&2; }

absent() { for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || printf ' %s' "$package"; done; }
get() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

# shellcheck disable=SC2086 # lists of names
needed=$(absent $PACKAGES $BUILD_PACKAGES) wanted=$(absent $TEST_PACKAGES)
if [ -n "$needed$wanted" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing$needed$wanted"
        apt-get update -qq >/dev/null 2>&1 || say "apt-get update failed; trying with the package lists at hand"
        # shellcheck disable=SC2086
        [ -z "$needed" ] || get $needed
        # shellcheck disable=SC2086
        [ -z "$wanted" ] || get $wanted || say "not installed:$wanted; tests that need them are skipped"
    else
        say "these Debian packages are missing; without root they can't be installed here:$needed$wanted"
    fi
fi

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "Python 3.11 or later is needed; set PYTHON to one"
    exit 1
fi
[ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv --clear "$VENV"
say "installing Python packages into $VENV"
"$VENV/bin/pip" install -q --disable-pip-version-check --use-pep517 -r tests/requirements.lock
"$VENV/bin/pip" install -q --disable-pip-version-check --use-pep517 --no-deps -e .
