#!/usr/bin/env bash
# A Redis server for comparison: on a port of its own, in a directory of its own, nothing kept on disk.
#
#   scripts/redis.sh COMMAND...   starts one, runs the command with POSTROOM_PEERS_REDIS set to its address, stops it
#                                 and removes its directory
#
# Without a Redis server on this machine (Debian: apt-get install redis-server) the command runs all the same; what
# needs one says that it was skipped.
set -euo pipefail

if [[ $# == 0 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
if ! command -v redis-server >/dev/null; then
    echo "no redis-server found (Debian: apt-get install redis-server)" >&2
    exec "$@"
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/postroom-redis.XXXXXX")
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A port that somebody else has is refused by the server itself, so the next one is tried.
for _ in {1..20}; do
    port=$((20000 + RANDOM % 10000))
    redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save '' --appendonly no --daemonize no \
        >"$dir/log" 2>&1 &
    server=$!
    until grep -q 'Ready to accept connections' "$dir/log"; do
        if ! kill -0 "$server" 2>/dev/null; then
            server=
            break
        fi
        sleep 0.05
    done
    if [[ -n $server ]]; then
        break
    fi
done
if [[ -z $server ]]; then
    cat "$dir/log" >&2
    exit 1
fi
POSTROOM_PEERS_REDIS=127.0.0.1:$port "$@"
