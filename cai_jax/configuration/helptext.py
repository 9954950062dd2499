"""The fields of the config as text, from their tables: `python -m cai_jax.main --help [KIND]`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cai_jax.configuration import files
from cai_jax.configuration.fields import Field, Named, Range, Table, nearest, table_of
from cai_jax.configuration.run import RUN
from cai_jax.configuration.stages import STAGES
from cai_jax.errors import UserError


def text(usage: str, kinds: Iterable[str] = ()) -> str:
    """What --help prints: the usage and the run's fields, or the fields of kinds of stages."""
    lines = []
    for kind in kinds:
        if kind not in STAGES:
            raise UserError(f"--help: no kind of stage '{kind}'; {nearest(kind, STAGES)}")
        lines += [f"{kind}: {STAGES[kind].comment}", *_lines(STAGES[kind].table, "  "), ""]
    if not lines:
        lines = [usage, "", "Fields of a run (config.…):", *_lines(RUN, "  "), ""]
        lines += [f"Fields of a stage: --help KIND, of {', '.join(STAGES)}"]
        lines += [f"NAME may be one of the project's: {', '.join(files.names())}"]
        lines += ["configs/default.py makes stages of each kind."]
    return "\n".join(lines).rstrip()


def _lines(table: Table, indent: str) -> Iterator[str]:
    for name, item in table.items():
        if isinstance(item, Field):
            bounds = f" [{item.expected}]" if isinstance(item.range, Range) else ""
            yield f"{indent}{name} = {item.default!r}{bounds}: {item.comment}"
        elif not isinstance(item, Named):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "  ")
        else:
            yield f"{indent}{name}: {item.comment}".rstrip(": ")
            if not isinstance(item.of, Field) and item.of is not STAGES:
                for kind, own in item.of.items():
                    yield f"{indent}  kind {kind}"
                    yield from _lines(table_of(own), indent + "    ")
