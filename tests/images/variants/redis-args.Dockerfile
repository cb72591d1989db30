# The same script as the entrypoint; the image does not tell which variable it takes.
ARG BASE
FROM ${BASE}
COPY redis-args.sh /opt/start
ENTRYPOINT ["/opt/start"]
