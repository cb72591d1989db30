#!/bin/sh
# Entrypoint of the stand-in Redis and Valkey images. Keeps the contract of the official image:
#   - arguments that begin with `-`, or a first argument that ends in `.conf`, go to the server;
#   - the server never runs as root: /data is handed to the user redis, then we start again as it;
#   - any other command runs as it is.
# Standard input is never touched: `redis-server -` reads its configuration from there.
set -eu

server=${REDIS_SERVER:-redis-server}
case "${1:-}" in
    '' | -* | *.conf) set -- "$server" "$@" ;;
esac

if [ "$1" = "$server" ] && [ "$(id -u)" = 0 ]; then
    find . ! -user redis -exec chown redis:redis {} +
    export HOME=/data
    exec setpriv --reuid=redis --regid=redis --init-groups -- "$0" "$@"
fi

# Files that Redis writes are its own business, unless somebody chose another umask.
if [ "$(umask)" = 0022 ]; then
    umask 0077
fi

# The official image is compiled with the protected mode off. Here it is an option, put in front so
# that a later `--protected-mode yes` wins. A configuration file, or `-`, has to come first and must
# not be overruled, and words like --version work only when they come first: these stay untouched.
if [ "$1" = "$server" ]; then
    case "${2:-}" in
        --version | --help | --test-memory | --check-system | --sentinel) ;;
        '' | --*)
            shift
            set -- "$server" --protected-mode no "$@"
            ;;
    esac
fi

exec "$@"
