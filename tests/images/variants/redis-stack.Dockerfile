# As redis-stack: a script of its own as the command, and the variable that it takes.
ARG BASE
FROM ${BASE}
COPY redis-args.sh /entrypoint.sh
ENV REDIS_ARGS="--maxclients 500"
ENTRYPOINT []
CMD ["/entrypoint.sh"]
