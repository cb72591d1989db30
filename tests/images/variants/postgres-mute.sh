#!/bin/sh
# Takes neither arguments nor variables.
POSTGRES_PASSWORD=company exec docker-entrypoint.sh postgres
