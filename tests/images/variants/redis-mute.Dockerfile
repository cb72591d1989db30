ARG BASE
FROM ${BASE}
COPY redis-mute.sh /opt/start
ENTRYPOINT ["/opt/start"]
