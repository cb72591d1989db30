# The server's user, by its name.
ARG BASE
FROM ${BASE}
USER redis
