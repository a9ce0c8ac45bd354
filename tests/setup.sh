#!/bin/sh
# Sets up what `make` needs, and says what and how far it is: Debian packages (as root) and a virtual environment.
# Called by the Makefile: `setup.sh demo` installs what kpx itself needs, `setup.sh test` what the tests need as well.
set -eu
what=$1 steps=3

say() { echo "setup: $*" >&2; }

absent() { for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || printf ' %s' "$package"; done; }
get() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

# A line for each package that pip comes to, with its number; of how many is only known where all are named.
tell() {
    awk -v total="$1" '
        function say(text) { print "setup:        " text; fflush() }
        /^Collecting |^Processing |^Requirement already satisfied: / {
            name = /^Requirement/ ? $4 : $2
            sub(/.*\//, "", name)
            sub(/-[0-9].*|[^-A-Za-z0-9_.].*/, "", name)
            if (!(name in seen)) { seen[name]; say(++number (total ? " of " total : "") ": " name) }
        }
        /^ *Building wheel for .*: started/ { say("building " $4) }
        /^Installing collected packages: / { say("unpacking " NF - 3 " packages") }
        /^ERROR|^error|^ *× / { print }
    ' >&2
}

# pip says nothing for minutes where the machine is busy. Its status counts, not that of awk.
pip_install() { # TOTAL ARGUMENTS...
    total=$1 failed=$(mktemp -u)
    shift
    { "$VENV/bin/pip" install --disable-pip-version-check --no-input --progress-bar off --use-pep517 "$@" 2>&1 ||
        : >"$failed"; } | tell "$total"
    [ ! -e "$failed" ] || { rm -f "$failed" && say "pip install $* failed" && exit 1; }
}

say "1 of $steps: Debian packages"
# shellcheck disable=SC2086 # lists of names
case $what in
demo) needed=$(absent $PACKAGES $BUILD_PACKAGES) wanted="" ;;
*) needed=$(absent $PACKAGES $BUILD_PACKAGES $TEST_PACKAGES) wanted=$(absent $MORE_PACKAGES) ;;
esac
if [ -n "$needed$wanted" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "       installing$needed$wanted"
        apt-get update -qq >/dev/null 2>&1 || say "       apt-get update failed; trying with the package lists at hand"
        # shellcheck disable=SC2086
        [ -z "$needed" ] || get $needed
        # shellcheck disable=SC2086
        [ -z "$wanted" ] || get $wanted || say "       not installed:$wanted; tests that need them are skipped"
    else
        say "       these are missing; without root they can't be installed here:$needed$wanted"
    fi
fi

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "Python 3.11 or later is needed; set PYTHON to one"
    exit 1
fi
say "2 of $steps: a virtual environment, $VENV"
[ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv --clear "$VENV"

if [ "$what" = demo ]; then
    say "3 of $steps: Python packages that kpx needs"
    pip_install "" -c tests/requirements.lock -e .
else
    say "3 of $steps: Python packages for linters and tests"
    pip_install "$(grep -c == tests/requirements.lock)" -r tests/requirements.lock
    pip_install "" --no-deps -e .
fi
# So that it starts at once, also where Python keeps no compiled modules (PYTHONDONTWRITEBYTECODE).
"$VENV/bin/python" -m compileall -q kpx
say "done"
