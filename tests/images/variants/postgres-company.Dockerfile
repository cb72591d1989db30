# A script of its own around the official one, which has another place, and a volume with scripts.
ARG BASE
FROM ${BASE}
COPY postgres-company.sh /opt/company/run.sh
RUN ["mv", "/usr/local/bin/docker-entrypoint.sh", "/opt/company/start.sh"]
COPY postgres-company.sql /docker-entrypoint-initdb.d/
VOLUME /docker-entrypoint-initdb.d
ENTRYPOINT ["/opt/company/run.sh"]
CMD ["postgres", "-c", "work_mem=7MB"]
