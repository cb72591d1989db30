#!/bin/sh
# A company's own script, which passes on what it is given.
echo "company: $*"
exec /opt/company/start.sh "$@"
