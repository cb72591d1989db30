ARG BASE
FROM ${BASE}
COPY postgres-mute.sh /opt/start
ENTRYPOINT ["/opt/start"]
