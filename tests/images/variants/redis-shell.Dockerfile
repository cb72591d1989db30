# Docker's shell form, which drops arguments, and a configuration as distributions have it.
ARG BASE
FROM ${BASE}
COPY redis-shell.conf /etc/redis.conf
ENTRYPOINT []
CMD redis-server /etc/redis.conf
