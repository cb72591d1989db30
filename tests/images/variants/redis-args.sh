#!/bin/sh
# As the script of redis-stack: it drops its arguments, and splits a variable into words.
exec redis-server --dir /data --protected-mode no ${REDIS_ARGS}
