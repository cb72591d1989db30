"""Starts Redis in Docker in the way of a run, in places where the tests themselves can't run.

Takes the name of the image, and a folder that represents the project. Prints the address of the
server, and removes the server when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from pytest_warmstack import redis
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.docker import Docker
from pytest_warmstack.servers.identity import Label, Process, Project
from pytest_warmstack.servers.model import RunContext


def main(image: str, folder: str) -> None:
    """Do it, twice, as two runs would."""
    run_context = RunContext(
        project=Project(path=folder),
        run=os.urandom(5).hex(),
        owner=Process.current(),
        keep=True,
        start_timeout=60,
    )
    spec = redis.spec(Settings(redis_image=image))
    runtime = Docker(run_context)
    told: dict[str, Any] = {"origins": []}
    try:
        for _ in range(2):
            server = runtime.ensure(spec)
            told["origins"].append(server.origin)
            told["version"] = server.client.version
            server.client.close()
        told["host"], told["port"] = server.endpoint.host, server.endpoint.port
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    finally:
        for found in runtime.list():
            if found.labels[Label.PATH] == folder:
                runtime.remove(found)
        runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
