#!/usr/bin/env bash
# A PostgreSQL server for tests: on a port of its own, in a directory of its own, as an unprivileged user.
#
#   scripts/postgres.sh with COMMAND...   starts one, runs the command with POSTROOM_TEST_POSTGRES set to its
#                                         URL, stops it and removes its directory
#   scripts/postgres.sh up                starts one and prints its directory and its URL
#   scripts/postgres.sh down DIR          stops it and removes its directory
#   scripts/postgres.sh stop DIR          stops it at once, as a crash would
#   scripts/postgres.sh start DIR         starts it again on the same port
#
# Exit code 3: there is no PostgreSQL server on this machine (Debian: apt-get install postgresql).
set -euo pipefail

# Where Debian puts what is not meant for everybody's path.
find_server() {
    local dir
    for dir in $(command -v initdb | xargs -r dirname) /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do
        if [[ -x $dir/initdb && -x $dir/pg_ctl ]]; then
            printf '%s\n' "$dir"
            return
        fi
    done
    echo "no PostgreSQL server found (Debian: apt-get install postgresql)" >&2
    exit 3
}

# PostgreSQL refuses to run as root.
unprivileged() {
    if [[ $(id -u) != 0 ]]; then
        "$@"
    elif id postgres >/dev/null 2>&1; then
        runuser -u postgres -- "$@"
    else
        runuser -u nobody -- "$@"
    fi
}

is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        if is_free "$port"; then
            printf '%s\n' "$port"
            return
        fi
    done
    echo "no free port between 20000 and 29999" >&2
    exit 1
}

# Nothing of value is in it, so it need not wait for the disk.
start() {
    local dir=$1 port
    port=$(cat "$dir/port")
    (
        cd /
        unprivileged "$bin/pg_ctl" start --silent --wait -D "$dir/data" -l "$dir/log" -o \
            "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=60"
    ) >/dev/null </dev/null || {
        cat "$dir/log" >&2
        exit 1
    }
}

stop() {
    (cd / && unprivileged "$bin/pg_ctl" stop --silent --wait -D "$1/data" -m immediate) >/dev/null 2>&1
}

url() {
    printf 'postgres://postroom@127.0.0.1:%s/postgres' "$(cat "$1/port")"
}

up() {
    local dir
    dir=$(cd /tmp && unprivileged mktemp -d /tmp/postroom-postgres.XXXXXX)
    (cd / && unprivileged "$bin/initdb" -D "$dir/data" -U postroom -A trust -E UTF8 --locale=C --no-sync) >/dev/null
    free_port | unprivileged tee "$dir/port" >/dev/null
    start "$dir"
    printf '%s\n' "$dir"
}

down() {
    stop "$1" || true
    rm -rf "$1"
}

bin=$(find_server)
case ${1:-} in
    with)
        shift
        dir=$(up)
        trap 'down "$dir"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        POSTROOM_TEST_POSTGRES=$(url "$dir") "$@"
        ;;
    up)
        dir=$(up)
        printf '%s\n%s\n' "$dir" "$(url "$dir")"
        ;;
    down | stop | start)
        "$1" "${2:?the directory is missing}"
        ;;
    *)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
        exit 2
        ;;
esac
