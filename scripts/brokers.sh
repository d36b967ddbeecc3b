#!/usr/bin/env bash
# Servers for comparison: Redis, NATS and RabbitMQ, each on a port of its own of 127.0.0.1, with all its files in a
# directory of its own.
#
#   scripts/brokers.sh COMMAND...   starts those that are installed, runs the command with their addresses in
#                                   POSTROOM_PEERS_REDIS, POSTROOM_PEERS_NATS and POSTROOM_PEERS_RABBITMQ, stops them
#                                   and removes the directories
#
# A server that is not on this machine is named, and the command runs all the same; what needs that server says that
# it was skipped. Debian has them: apt-get install redis-server nats-server rabbitmq-server (which starts each as a
# service, of which nothing here knows).
set -euo pipefail

if [[ $# == 0 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/postroom-brokers.XXXXXX")
servers=()
# Killed, not asked to end: nothing of what they hold is wanted. The latest first.
finish() {
    local server
    for server in "${servers[@]}"; do
        kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

redis() {
    exec redis-server --bind 127.0.0.1 --port "$port" --dir "$1" --save '' --appendonly no --daemonize no
}

nats() {
    exec nats-server --addr 127.0.0.1 --port "$port" --jetstream --store_dir "$1"
}

# RabbitMQ would start one itself and leave it behind.
epmd() {
    exec "$(type -P epmd)" -d -d -address 127.0.0.1 -port "$port"
}

# Nothing of this machine's own configuration, and the Erlang process itself instead of scripts around it. Debian's
# command of that name changes to another user and to the service's directory, so it is passed by.
rabbitmq() {
    export HOME=$1 ERL_CRASH_DUMP=$1/crash RABBITMQ_MNESIA_BASE=$1/mnesia RABBITMQ_LOG_BASE=$1 RABBITMQ_LOGS=-
    export RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE=$1/none RABBITMQ_ADVANCED_CONFIG_FILE=$1/none
    export RABBITMQ_ENABLED_PLUGINS_FILE=$1/plugins
    export RABBITMQ_NODENAME=postroom@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT=$port
    export ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$epmd RABBITMQ_DIST_PORT=$((port - 10000))
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
    export RABBITMQ_ALLOW_INPUT=1 RABBITMQ_SERVER_START_ARGS=-noinput
    exec "$rabbitmq_server"
}

# start NAME READY: runs the function of that name until its output has READY in it, and leaves its port in $port. A
# port that somebody else has is refused by the server itself, so another one is tried.
start() {
    local name=$1 ready=$2 log deadline
    for _ in {1..5}; do
        port=$((20000 + RANDOM % 10000))
        log=$dir/$name-$port.log
        deadline=$((SECONDS + 60))
        mkdir -p "$dir/$name-$port"
        "$name" "$dir/$name-$port" >"$log" 2>&1 </dev/null &
        servers=("$!" "${servers[@]}")
        while kill -0 "${servers[0]}" 2>/dev/null && ((SECONDS < deadline)); do
            if grep -qs "$ready" "$log"; then
                return
            fi
            sleep 0.05
        done
        if ((SECONDS >= deadline)); then
            break
        fi
        servers=("${servers[@]:1}")
    done
    echo "$name does not start:" >&2
    tail -n 20 "$log" >&2
    exit 1
}

# Where a server is; says so if there is none.
installed() {
    type -P "$1" || ! echo "no $1 found (Debian: apt-get install $1)" >&2
}

unset POSTROOM_PEERS_REDIS POSTROOM_PEERS_NATS POSTROOM_PEERS_RABBITMQ
if installed redis-server >/dev/null; then
    start redis 'Ready to accept connections'
    export POSTROOM_PEERS_REDIS=127.0.0.1:$port
fi
if installed nats-server >/dev/null; then
    start nats 'Server is ready'
    export POSTROOM_PEERS_NATS=127.0.0.1:$port
fi
if rabbitmq_server=$(PATH=/usr/lib/rabbitmq/bin:$PATH installed rabbitmq-server); then
    start epmd 'entering the main select() loop'
    epmd=$port
    start rabbitmq 'Server startup complete'
    export POSTROOM_PEERS_RABBITMQ=127.0.0.1:$port
fi
"$@"
