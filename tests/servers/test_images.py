"""Images of all kinds: their own entrypoints start them, or the error says what they lack.

The variants in tests/images/variants are built on the images that the other tests use.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from docker.models.containers import ContainerCollection

from projects import Bench, Images, Library, containers, engine, left, query
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.docker import image
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.model import ServerSpec

pytestmark = [
    pytest.mark.docker,
    pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True),
]

RECIPES: Final = Path(__file__).parents[1] / "images" / "variants"
SOURCE: Final = "pytest.ini"


@pytest.fixture(scope="session")
def variant(images: Images) -> Callable[[str], str]:
    """A function that builds a variant of the tests' images, such as `redis-stack`."""

    def build(name: str) -> str:
        base = images.postgres if name.startswith("postgres") else images.redis
        tag = f"warmstack-variant:{name}"
        with engine() as client:
            client.images.build(
                path=str(RECIPES),
                dockerfile=f"{name}.Dockerfile",
                buildargs={"BASE": base},
                tag=tag,
                network_mode="none",
                rm=True,
                forcerm=True,
            )
        return tag

    return build


def described(bench: Bench, image: str, service: str = "") -> ServerSpec[Any]:
    """Return the description of a server from *image*."""
    spec = getattr(bench, service or image.rpartition(":")[2].partition("-")[0])
    return spec.replace(image=image, image_source=SOURCE)


@pytest.mark.parametrize(
    ("name", "clients"),
    [
        ("redis-stack", "500"),
        ("redis-args", "10000"),
        ("redis-bare", "500"),
        ("redis-shell", "500"),
        ("redis-user", "10000"),
    ],
)
def test_a_redis_takes_its_settings_whatever_its_entrypoint_is(
    bench: Bench, variant: Callable[[str], str], name: str, clients: str
) -> None:
    """By arguments or by a variable, and what the image itself sets stays."""
    server = bench.ensure(described(bench, variant(name)))

    answers = [server.client.command("CONFIG", "GET", each)[1] for each in ("databases", "save")]
    assert answers == ["256", ""]
    assert server.client.command("CONFIG", "GET", "maxclients")[1] == clients
    assert server.client.command("SET", "key", "value") == "OK"


@pytest.mark.parametrize(("name", "memory"), [("postgres-company", "7MB"), ("postgres-user", "")])
def test_a_postgres_takes_its_settings_whatever_its_entrypoint_is(
    bench: Bench, variant: Callable[[str], str], name: str, memory: str
) -> None:
    """It is started by the image's own script, whose other arguments stay, with data in memory."""
    server = bench.ensure(described(bench, variant(name)))

    def show(setting: str) -> str:
        return str(asyncio.run(query(server.endpoint, f"SHOW {setting}"))[0][0])

    assert show("fsync") == "off"
    assert show("work_mem") == (memory or "4MB")
    look = ["stat", "-f", "-c", "%T", show("data_directory")]
    with engine() as client:
        container = client.containers.get(server.id)
        assert container.exec_run(look, user="root").output.decode().strip() == "tmpfs"
        if name == "postgres-company":
            assert b"company: postgres -c work_mem=7MB -c listen_addresses=" in container.logs()
            # The volume with scripts is not hidden by a tmpfs.
            roles = asyncio.run(query(server.endpoint, "SELECT rolname FROM pg_roles"))
            assert "company" in {row[0] for row in roles}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("redis-mute", "as arguments (--NAME VALUE), or all of them as REDIS_ARGS"),
        ("postgres-mute", "POSTGRES_PASSWORD, and settings as arguments (-c NAME=VALUE)"),
    ],
)
def test_an_image_that_takes_nothing_is_told(
    bench: Bench, variant: Callable[[str], str], name: str, contract: str, *, keep: bool
) -> None:
    """With the contract that it lacks, and the setting that names it; nothing is left."""
    spec = described(bench, variant(name))

    with pytest.raises(ServerFailed) as caught:
        bench.ensure(spec, keep=keep)

    text = str(caught.value)
    assert text.startswith(
        f"{spec.title} from the Docker image {spec.image} ({SOURCE}) ignored its password"
    )
    assert contract in text
    assert f"set {spec.image_variable} to another image" in text
    assert f"{spec.url_variable}=URL" in text
    assert left(bench.folder) == []


def test_too_little_memory_for_the_data_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the place, its size, and what gives it more."""
    monkeypatch.setattr(image, "_TMPFS_OPTIONS", "mode=1777,size=20m")

    with pytest.raises(ServerFailed) as caught:
        bench.ensure(bench.postgres)

    error = caught.value
    assert (
        error.what == "PostgreSQL ran out of memory for its data while it was starting in Docker."
    )
    assert re.match(
        r"/var/lib/postgresql/data in the container, a tmpfs with at most \d+\.\d GB",
        error.looked_at[0],
    )
    assert "No space left on device" in error.looked_at[1]
    assert left(bench.folder) == []


@pytest.mark.parametrize("memory", ["16m", ""])
def test_a_server_that_is_killed_for_lack_of_memory_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """The engine says so; another end is another error."""
    create = ContainerCollection.create

    def limited(*arguments: Any, **options: Any) -> Any:
        options |= {"entrypoint": ["sh", "-c"], "command": ["exit 137"]}
        if memory:
            options |= {"mem_limit": memory, "command": ["cat /dev/zero > /data/zeros"]}
        return create(*arguments, **options)

    monkeypatch.setattr(ContainerCollection, "create", limited)

    with pytest.raises(ServerFailed) as caught:
        bench.ensure(bench.redis)

    assert ("Redis ran out of memory" in caught.value.what) is bool(memory)
    assert "exit status 137" in caught.value.why


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_an_image_of_the_other_service_is_recognized(
    bench: Bench, images: Images, service: str
) -> None:
    """Before anything is started; the error names the setting."""
    other = {"postgres": "redis", "redis": "postgres"}[service]
    spec = described(bench, getattr(images, other), service)

    with pytest.raises(RuntimeUnavailable) as caught:
        bench.runtime().check([spec], pytest.fail)

    assert caught.value.what == (
        f"The Docker image {spec.image} runs {other}, but is set as the image of {spec.title}"
        f" ({SOURCE})."
    )
    assert f"set {spec.image_variable} to an image of" in str(caught.value)


def test_a_run_with_the_images_exchanged_stops(project: Library, images: Images) -> None:
    """Also with auto, which takes no embedded server instead."""
    result = project.run(
        f"--warmstack-postgres-image={images.redis}", "--warmstack-runtime=auto", "-k", "book"
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert f"The Docker image {images.redis} runs redis" in text
    assert "(command line option --warmstack-postgres-image)" in text
    assert containers(project.folder) == []
