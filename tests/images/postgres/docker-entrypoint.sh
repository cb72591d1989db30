#!/bin/bash
# Entrypoint of the stand-in PostgreSQL image. Keeps the contract of the official image:
#   - arguments that begin with `-` go to postgres; a command other than postgres runs as it is;
#   - postgres never runs as root: PGDATA is handed to the user postgres, then we start again as it;
#   - an empty PGDATA is initialised: initdb, then a temporary server on the Unix socket only, which
#     creates POSTGRES_DB and runs /docker-entrypoint-initdb.d; only then the real server starts,
#     so whoever reaches the TCP port reaches a finished database;
#   - a PGDATA with a database in it is used as it is.
# Without `-u`: init scripts may be sourced into this shell.
set -Eeo pipefail

SOCKET_DIRECTORY=/var/run/postgresql

fail() {
    printf 'Error: %s\n' "$@" >&2
    exit 1
}

# variable NAME [DEFAULT]: set NAME from the environment, from the file that NAME_FILE points at, or
# to DEFAULT.
variable() {
    local name=$1 default=${2:-} file_name="$1_FILE"
    local value=${!name:-} file=${!file_name:-}
    if [ -n "$value" ] && [ -n "$file" ]; then
        fail "both $name and $file_name are set (but are exclusive)"
    fi
    if [ -n "$file" ]; then
        value=$(<"$file") || fail "$file_name: cannot read $file"
    fi
    declare -g "$name=${value:-$default}"
    export "${name?}"
    unset "$file_name"
}

# True when postgres was only asked to print something and will not touch PGDATA.
only_prints() {
    local word
    for word; do
        case "$word" in
            -'?' | --help | --describe-config | -V | --version) return 0 ;;
        esac
    done
    return 1
}

create_directories() {
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA" || :
    # May be a read-only or foreign mount; postgres itself will complain if that matters.
    mkdir -p "$SOCKET_DIRECTORY" || :
    chmod 3777 "$SOCKET_DIRECTORY" || :
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        mkdir -p "$POSTGRES_INITDB_WALDIR"
        chmod 0700 "$POSTGRES_INITDB_WALDIR"
    fi
    if [ "$(id -u)" = 0 ]; then
        find "$PGDATA" ${POSTGRES_INITDB_WALDIR:+"$POSTGRES_INITDB_WALDIR"} "$SOCKET_DIRECTORY" \
            ! -user postgres -exec chown postgres:postgres {} +
    fi
}

# From 18 on the data moved to /var/lib/postgresql/18/docker and the volume one floor up. A mount at
# the old place would stay empty and the data would be lost with the container: refuse, as the
# official image does.
refuse_the_old_place() {
    [ "$PG_MAJOR" -ge 18 ] && [ "$PGDATA" = "/var/lib/postgresql/$PG_MAJOR/docker" ] || return 0
    local place
    for place in /var/lib/postgresql /var/lib/postgresql/data /var/lib/postgresql/*/docker; do
        if [ -s "$place/PG_VERSION" ]; then
            fail "in 18+, the data lives in $PGDATA, but there is an older database in $place"
        fi
    done
    if mountpoint -q /var/lib/postgresql/data; then
        fail "in 18+, the data lives in $PGDATA, but there is an unused mount at /var/lib/postgresql/data" \
            "mount at /var/lib/postgresql instead"
    fi
}

check_password() {
    if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
        echo "WARNING: POSTGRES_HOST_AUTH_METHOD=trust lets anyone in without a password." >&2
    elif [ -z "$POSTGRES_PASSWORD" ]; then
        fail "Database is uninitialized and superuser password is not specified." \
            "Give POSTGRES_PASSWORD (or POSTGRES_PASSWORD_FILE) a value that is not empty," \
            "for example: docker run -e POSTGRES_PASSWORD=... IMAGE" \
            "or let everyone in without one: POSTGRES_HOST_AUTH_METHOD=trust"
    fi
}

init_cluster() {
    # Word by word, with quotes obeyed, as a shell would read it.
    local arguments=()
    eval "arguments=($POSTGRES_INITDB_ARGS)"
    if [ -n "${POSTGRES_INITDB_WALDIR:-}" ]; then
        arguments+=(--waldir "$POSTGRES_INITDB_WALDIR")
    fi
    # The password goes through a pipe: it is in no file and in no process list.
    initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --no-instructions \
        --pwfile <(printf '%s\n' "$POSTGRES_PASSWORD") "${arguments[@]}"
    # These binaries were compiled for a socket in /tmp, the official ones for $SOCKET_DIRECTORY.
    printf "\nunix_socket_directories = '%s'\n" "$SOCKET_DIRECTORY" >> "$PGDATA/postgresql.conf"
    # initdb has written `trust` for the socket and the loopback; this line is for everybody else.
    printf '\nhost all all all %s\n' "$POSTGRES_HOST_AUTH_METHOD" >> "$PGDATA/pg_hba.conf"
}

sql() {
    psql --host "$SOCKET_DIRECTORY" --port "${PGPORT:-5432}" --username "$POSTGRES_USER" \
        --set ON_ERROR_STOP=1 --no-password --no-psqlrc "$@"
}

create_database() {
    [ "$POSTGRES_DB" != postgres ] || return 0
    local found
    found=$(sql --dbname postgres --set db="$POSTGRES_DB" --tuples-only --no-align \
        <<< "SELECT 1 FROM pg_database WHERE datname = :'db'")
    if [ -z "$found" ]; then
        sql --dbname postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db"'
    fi
}

run_init_scripts() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case "$file" in
            *.sh)
                echo "$0: running $file"
                # Executable scripts run on their own, others inside this shell.
                # shellcheck disable=SC1090
                if [ -x "$file" ]; then "$file"; else . "$file"; fi
                ;;
            *.sql)
                echo "$0: running $file"
                sql --dbname "$POSTGRES_DB" --file "$file"
                ;;
            *.sql.gz)
                echo "$0: running $file"
                gunzip -c "$file" | sql --dbname "$POSTGRES_DB"
                ;;
            '/docker-entrypoint-initdb.d/*') ;;
            *) echo "$0: ignoring $file" ;;
        esac
    done
}

# with_temporary_server POSTGRES-ARGUMENT...: what has to be done between initdb and the real start.
with_temporary_server() {
    # Ours come last, and the last one wins.
    local options
    options=$(printf '%q ' "$@" -c listen_addresses= -c unix_socket_directories="$SOCKET_DIRECTORY" \
        -p "${PGPORT:-5432}")
    export PGPASSWORD="${PGPASSWORD:-$POSTGRES_PASSWORD}"
    NOTIFY_SOCKET='' PGUSER="${PGUSER:-$POSTGRES_USER}" pg_ctl --pgdata "$PGDATA" --options "$options" --wait start
    create_database
    run_init_scripts
    pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
    unset PGPASSWORD
}

main() {
    case "${1:-}" in
        -*) set -- postgres "$@" ;;
    esac

    if [ "${1:-}" = postgres ] && ! only_prints "$@"; then
        variable POSTGRES_PASSWORD
        variable POSTGRES_USER postgres
        variable POSTGRES_DB "$POSTGRES_USER"
        variable POSTGRES_INITDB_ARGS
        variable POSTGRES_HOST_AUTH_METHOD scram-sha-256

        create_directories
        if [ "$(id -u)" = 0 ]; then
            export HOME=/var/lib/postgresql
            exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
        fi

        if [ -s "$PGDATA/PG_VERSION" ]; then
            printf '\nPostgreSQL Database directory appears to contain a database; Skipping initialization\n\n'
        else
            refuse_the_old_place
            check_password
            init_cluster
            with_temporary_server "${@:2}"
            printf '\nPostgreSQL init process complete; ready for start up.\n\n'
        fi
    fi

    exec "$@"
}

main "$@"
