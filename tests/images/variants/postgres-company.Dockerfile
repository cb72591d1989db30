# A script of its own around the official one, which has another place, a configuration and a secret
# of its own, and a volume with scripts.
ARG BASE
FROM ${BASE}
COPY postgres-company.sh /opt/company/run.sh
RUN ["mv", "/usr/local/bin/docker-entrypoint.sh", "/opt/company/start.sh"]
COPY postgres-company.sql /docker-entrypoint-initdb.d/
VOLUME /docker-entrypoint-initdb.d
ENV POSTGRES_PASSWORD_FILE=/run/secrets/postgres PGPORT=5433
ENTRYPOINT ["/opt/company/run.sh"]
CMD ["postgres", "-c", "work_mem=7MB", "-c", "listen_addresses=localhost"]
