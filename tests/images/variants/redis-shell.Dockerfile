# Docker's shell form, which drops arguments.
ARG BASE
FROM ${BASE}
ENTRYPOINT []
CMD redis-server --maxclients 500
