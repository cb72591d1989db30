"""What the containers of all suites have in common: data in memory, durability off, a label."""

import os

from docker.types import Mount

POSTGRES_IMAGE = os.environ["BENCH_POSTGRES_IMAGE"]
REDIS_IMAGE = os.environ["BENCH_REDIS_IMAGE"]
COMMAND = "postgres -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
MOUNTS = [Mount("/var/lib/postgresql/data", None, type="tmpfs")]
# By this label the benchmark finds and removes them.
LABELS = {"pytest-warmstack-benchmark": os.environ["BENCH_LABEL"]}
