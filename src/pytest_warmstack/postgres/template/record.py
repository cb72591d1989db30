"""What a template says of itself: the chain of links that it was built of, with what each read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Self

BASE: Final = "base"
"""The name of the layer that all others stand on; it has no links."""

ALEMBIC: Final = "alembic"
"""The name of the layer whose links are revisions."""


DDL: Final = "ddl:"
"""How the key of a `MetaData` begins. Its digest is that of the statements that make its tables."""


CONFIG: Final = "config:"
"""How the key of a `Config` that a function makes begins. Its digest is that of its values."""


class BuildStep(NamedTuple):
    """One step of a build: a revision, a script.

    *source* is the key of its own file or `MetaData`, empty when it has none; *needs* are the keys,
    with their digests, of all that it read, its own among them; *after* are the names of the links
    that it is applied after: all those before it in the chain, if this is None.
    """

    name: str
    source: str
    needs: Mapping[str, str]
    after: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What a reader knows it by: the name of its file, else its own."""
        return label(self.source) or self.name

    @property
    def digest(self) -> str | None:
        """The digest of its own file."""
        return self.needs.get(self.source)

    @property
    def is_settled(self) -> bool:
        """Whether its digest alone tells what it does, whatever was read to find that out."""
        return self.source.startswith(DDL)

    def others(self) -> dict[str, str]:
        """Return what it needs besides its own file."""
        return {key: digest for key, digest in self.needs.items() if key != self.source}


class LayerRecord(NamedTuple):
    """What one layer has in a template.

    *key* is the layer's, *needs* is what all of its links depend on, *folders* is what has to be
    planned again when it changes, such as a folder in which a new link may appear, *remark* is a
    warning for the header. It is not *whole* when the layer has more links than these.
    """

    layer: str
    key: str
    needs: Mapping[str, str] = {}
    folders: Mapping[str, str] = {}
    links: tuple[BuildStep, ...] = ()
    remark: str = ""
    whole: bool = True

    def describe(self) -> str:
        """Return what it holds: `9 revisions`, `seed demo.sql`."""
        if self.layer == ALEMBIC and [link.source for link in self.links] == [""]:
            return f"the migrations of {self.links[0].name}{self.remark}"
        if self.layer == ALEMBIC:
            return f"{_revisions(len(self.links))}{self.remark}"
        if len(self.links) > 1:
            return f"{len(self.links)} {self.layer} scripts"
        return " ".join([self.layer, *(link.name for link in self.links if link.name)])


def label(key: str) -> str:
    """Return what a reader calls the thing that *key* names.

    >>> label("file:shop/helpers.py"), label("file:shop/__init__.py"), label("package:pgvector")
    ('helpers.py', 'shop/__init__.py', 'pgvector')
    """
    kind, _, name = key.partition(":")
    if kind not in {"file", "there", "ini", "toml"}:
        return name
    return "/".join(name.split("/")[-2 if name.endswith("__init__.py") else -1 :])


def carried(planned: LayerRecord, recorded: LayerRecord) -> LayerRecord:
    """Return *planned* with what the links that *recorded* has of it are known to need."""
    known = {each.name: each.others() for each in recorded.links}
    links = tuple(
        each if each.is_settled else each._replace(needs=known.get(each.name, {}) | {**each.needs})
        for each in planned.links
    )
    return planned._replace(needs={**recorded.needs, **planned.needs}, links=links)


def merged(portion: LayerRecord, first: int, applied: LayerRecord) -> LayerRecord:
    """Return *portion* with what the links from *first* on, now applied, are known to need."""
    links = list(portion.links)
    links[first : first + len(applied.links)] = applied.links
    return portion._replace(
        needs={**portion.needs, **applied.needs},
        folders={**portion.folders, **applied.folders},
        links=tuple(links),
        remark=applied.remark or portion.remark,
    )


class Record(NamedTuple):
    """What a template's comment says of it.

    *built* is in epoch seconds, *run* is the id of the run that built it. One that is *left* was
    made on the way to another: the next build will want to begin there.
    """

    built: float
    run: str
    portions: tuple[LayerRecord, ...]
    left: bool = False

    @property
    def text(self) -> str:
        """What the layers hold."""
        told = [each.describe() for each in self.portions if each.layer != BASE] or [
            "an empty database"
        ]
        return ", ".join(told) + "".join(e.remark for e in self.portions if e.layer == BASE)

    def write(self) -> str:
        """Return the comment. Each key stands in it once: a helper may serve a thousand links."""
        table: dict[tuple[str, str], int] = {}

        def numbers(needs: Mapping[str, str]) -> list[int]:
            return [table.setdefault(each, len(table)) for each in needs.items()]

        portions = [
            [
                *(each.layer, each.key, numbers(each.needs), numbers(each.folders)),
                [
                    [
                        link.name,
                        numbers({link.source: link.needs[link.source]} if link.source else {}),
                        numbers(link.needs),
                        link.after,
                    ]
                    for link in each.links
                ],
                *(each.remark, each.whole),
            ]
            for each in self.portions
        ]
        plain = {
            # First: `SIGNATURE` and `LEFT` are how the comment begins.
            "warmstack": "left" if self.left else "template",
            "built": self.built,
            "run": self.run,
            "portions": portions,
            "table": list(table),
        }
        return json.dumps(plain, separators=(",", ":"))

    @classmethod
    def read(cls, comment: str) -> Self | None:
        """Return what *comment* says; None when it can't be understood."""
        try:
            plain = json.loads(comment)
            table = [(str(key), str(digest)) for key, digest in plain["table"]]

            def needs(numbers: list[int]) -> dict[str, str]:
                return dict([table[number] for number in numbers])

            return cls(
                float(plain["built"]),
                str(plain["run"]),
                tuple(
                    LayerRecord(
                        layer=layer,
                        key=key,
                        needs=needs(common),
                        folders=needs(folders),
                        links=tuple(
                            BuildStep(
                                name,
                                table[source[0]][0] if source else "",
                                needs(own),
                                after if after is None else tuple(after),
                            )
                            for name, source, own, after in links
                        ),
                        remark=remark,
                        whole=whole,
                    )
                    for layer, key, common, folders, links, remark, whole in plain["portions"]
                ),
                plain["warmstack"] == "left",
            )
        except (ValueError, TypeError, KeyError, IndexError):
            return None


def length(portions: Iterable[LayerRecord]) -> int:
    """Return how many links *portions* have."""
    return sum(len(each.links) for each in portions)


def extended(base: Record, record: Record) -> str:
    """Return what was applied to *base* to make *record*: `by 2 revisions from 14`."""
    before = {each.layer: len(each.links) for each in base.portions}
    new = [
        portion._replace(links=links, remark="").describe()
        for portion in record.portions
        if (links := portion.links[before.get(portion.layer, 0) :])
    ]
    revisions = [len(each.links) for each in base.portions if each.layer == ALEMBIC]
    if revisions and new and new[0].endswith(("revision", "revisions")):
        return f"by {', '.join(new)} from {revisions[0]}"
    return f"by {', '.join(new)} from {base.text}"


def _revisions(count: int) -> str:
    return f"{count} revision{'' if count == 1 else 's'}"
