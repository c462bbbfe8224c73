# What the steps share; they source it.
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
# Nothing here is built a second time or debugged: a third of the building is saved.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=line-tables-only
target=${CARGO_TARGET_DIR:-target}

# A step that cannot be done here says why and ends with this.
SKIPPED=77
skip() {
    echo "skipped: $1"
    exit $SKIPPED
}

die() {
    echo "$1" >&2
    exit 1
}

# need COMMAND PACKAGE: installs it where that can be done.
need() {
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "$1 is missing, and only root can install it, with apt-get: install the package $2"
    fi
    echo "installing $2"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null
    command -v "$1" >/dev/null || die "the package $2 has not brought $1"
}

# component NAME: a part of the toolchain that a minimal one lacks.
component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    rustup component add "$1" || die "the toolchain has no $1, and rustup could not add it"
}

# Is there a nightly with these components?
nightly_with() {
    local installed component
    installed=$(rustup component list --toolchain nightly --installed 2>/dev/null) || return 1
    for component in "$@"; do
        grep -q "^$component" <<<"$installed" || return 1
    done
}

# serve COMMAND...: starts a server, and waits for the line that says where it listens. Sets `server` and `addr`.
serve() {
    local first
    exec {server_out}< <(exec "$@")
    server=$!
    trap 'kill -KILL $server 2>/dev/null || true' EXIT
    read -r -t 60 -u "$server_out" first || die "$1 has not said where it listens"
    addr=${first#listening on }
    [ "$addr" != "$first" ] || die "the first line of $1 is: $first"
}

# Open descriptors of the server, then its threads.
server_holds() {
    find "/proc/$server/$1" -mindepth 1 -maxdepth 1 | wc -l
}

# at_rest DESCRIPTORS THREADS: the server has to come back to that.
at_rest() {
    local patience=600
    while [ "$(server_holds fd)" -gt "$1" ]; do
        [ $((patience -= 1)) -gt 0 ] || die "the server still holds $(server_holds fd) descriptors; there were $1"
        sleep 0.1
    done
    [ "$(server_holds task)" -le "$2" ] || die "the server has $(server_holds task) threads; at most $2 are right"
}

# Ends the server, which must be as well as ever until then.
end_server() {
    local status=0
    kill -TERM "$server"
    wait "$server" || status=$?
    trap - EXIT
    exec {server_out}<&-
    [ "$status" = 143 ] || die "the server ended with status $status; 143 is right for one that SIGTERM ended"
}
