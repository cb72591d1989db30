# The server alone, without a shell.
ARG BASE
FROM ${BASE}
RUN ["rm", "-f", "/bin/sh", "/bin/bash", "/bin/dash", "/usr/local/bin/docker-entrypoint.sh"]
ENTRYPOINT ["redis-server"]
CMD ["--maxclients", "500"]
