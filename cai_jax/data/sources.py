r"""The one parser of source strings: which files or data sets, which columns, which split, how many
rows.

    embedded:red_team         prompts.jsonl      pairs.parquet#dialogue=question,chosen=good
    hf:ORG/NAME/CONFIG@REVISION                  tfds:NAME/CONFIG@DIRECTORY#prompt=text
    hf:DIRECTORY              helpful.jsonl[train]+pairs.jsonl[0-8/10:500]+embedded:helpful[:20]

`+` joins sources. After a name may come columns, `#field=column,…`, and `[SPLIT]`, `[SPLIT:LIMIT]`
or `[:LIMIT]`, which hold for this source alone; without them the config's fields `split` and
`limit` do. `[]` takes all rows.

A split is the name that rows have in a field "split" (or that TFDS or the hub knows), parts of
the first human turns, or both: "train", "2-5/10", "train 2-5/10" (`records.part_of`).

A path that exists always wins as it is written, whatever characters it has ("run #1/a+b.jsonl"),
and so does every folder in front of a file that is missing. Elsewhere a backslash before one of
`+ # @ [ ] ,` makes that character belong to the name: `hf:me/c\+\+`, `new\#1.jsonl`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cai_jax.errors import UserError

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
FILE, EMBEDDED, TFDS, HUB = "file", "embedded", "tfds", "hf"
LONGEST = 4000  # characters: no longer text is a source
FIELDS = (
    *("prompt", "messages", "transcript", "dialogue", "chosen", "rejected", "id", "kind", "split"),
    *("rating", "response", "prompt_id", "num_tokens", "stop"),
    *("better", "worse", "subset", "corrects", "incorrects", "text_correct", "text_incorrect"),
)
_MARKS = "+#["  # what ends a name; "@" too, where a revision or directory may follow
_ESCAPED = re.compile(r"\\([+#@\[\],])")
# What follows a name; splits of TFDS may have brackets of their own, "train[:10%]".
_SUFFIX = re.compile(
    r"#(?P<columns>(?:(?<=\\)[+\[]|[^+\[])*)|\[(?P<split>(?:[^\[\]]|\[[^\[\]]*\])*)\]", re.DOTALL
)
_HOW_TO_ESCAPE = "write a backslash before + # @ [ ] where they belong to a name"
_PARTS = re.compile(r"(?:(.*\S)\s+)?(\d+)(?:-(\d+))?/(\d+)")


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of an `a+b` text. `split` and `limit` are None where the text leaves them to the
    config's fields."""

    kind: str  # file, embedded, tfds or hf
    name: str  # a path; what follows "embedded:", "tfds:" or "hf:" up to "@"
    at: str = ""  # what follows "@": a TFDS directory or a revision of the hub
    columns: tuple[tuple[str, str], ...] = ()  # (our field, their column)
    split: str | None = None
    limit: int | None = None
    written: str = dataclasses.field(default="", compare=False)  # as in the text, marks and all

    @property
    def location(self) -> str:
        """The name for messages, without columns and split."""
        prefix = "" if self.kind == FILE else f"{self.kind}:"
        return f"{prefix}{self.name}{'@' * bool(self.at)}{self.at}"

    @property
    def stem(self) -> str:
        """The short name that generated ids and tables use: no folder, no ending."""
        folder = os.path.expanduser(self.name)
        if self.kind == HUB and os.path.isdir(folder):  # the same however it is spelled
            return os.path.basename(os.path.abspath(folder))
        if self.names_splits:
            return self.name
        return re.sub(r"(\.jsonl|\.json|\.parquet|\.csv)?(\.gz)?$", "", Path(self.name).name)

    @property
    def names_splits(self) -> bool:
        """Whether a split is chosen in reading, not by a field of the rows."""
        return self.kind in (TFDS, HUB)

    @property
    def path(self) -> Path | None:
        """Where the source would be on this machine; a name of the hub gives a path that is not
        there, an empty name None."""
        if self.kind == EMBEDDED:
            return EMBEDDED_FOLDER / f"{self.name}.jsonl"
        if self.kind == TFDS:
            folder = self.at or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
            return Path(folder).expanduser() / self.name
        return Path(self.name).expanduser() if self.name else None

    def options(self, split: str | None, limit: int | None) -> dict:
        """`split` and `limit` for this source: its own, else those of the config's fields."""
        return {
            "split": split if self.split is None else self.split,
            "limit": limit if self.limit is None else self.limit,
        }


@dataclasses.dataclass(frozen=True)
class Split:
    """A parsed split: a name ("" for rows of any), and parts `low` to `high` of `count` (0 for
    all)."""

    name: str = ""
    low: int = 0
    high: int = 0
    count: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Split:
        """Raises UserError for parts that do not exist."""
        match = _PARTS.fullmatch(text or "")
        if not match:
            return cls(text or "")
        low, high, count = int(match[2]), int(match[3] or match[2]), int(match[4])
        if not low <= high < count:
            raise UserError(
                f"split '{text}': of {count} parts there are 0 to {count - 1}; write them as 2-5/10"
            )
        return cls(match[1] or "", low, high, count)


def parse(text: str) -> tuple[Source, ...]:
    """The sources that `text` names, in its order; none where it is blank. Raises UserError for a
    mark that is used wrongly."""
    sources, position = [], 0
    while text[position:].strip():
        source, position = _next_source(text, position)
        sources.append(source)
    return tuple(sources)


def single(text: str) -> Source:
    """The source that `text` names, where there can be only one."""
    sources = parse(text)
    if len(sources) != 1:
        raise UserError(f"{text}: expected one source, got {len(sources)}")
    return sources[0]


def files(text: str) -> list[Path]:
    """The files and directories on this machine that the sources name, as far as they exist: of
    "tfds:NAME" the prepared directory, of a repository of the hub none."""
    paths = [source.path for source in parse(text) if source.path]
    return [path for path in paths if os.path.exists(path)]


def locations(text: str) -> list[str]:
    """The names in `text` for tables and reports, without columns and splits; `text` itself where
    it cannot be parsed."""
    try:
        return [source.location for source in parse(text)]
    except UserError:
        return [text]


def distinct_names(sources: Sequence[Source]) -> list[str]:
    """The short names of the sources of an `a+b`, by which ids are made: with the folder where two
    files have the same name, with a number where that is the same, too."""
    stems = [source.stem for source in sources]
    locations: dict[str, list[str]] = {}
    names = []
    for source, name in zip(sources, stems, strict=True):
        folder = Path(source.name).parent.name
        if stems.count(name) > 1 and folder and not source.names_splits:
            name = f"{folder}/{name}"
        same = locations.setdefault(name, [])
        if source.location not in same:
            same.append(source.location)
        number = same.index(source.location)
        names.append(f"{name}~{number + 1}" if number else name)
    return names


# --- The parser -----------------------------------------------------------------------------------


def _next_source(text: str, start: int) -> tuple[Source, int]:
    """(the source that begins at `start`, where the next one begins)."""
    start = begin = start + len(text[start:]) - len(text[start:].lstrip())
    kind = next((k for k in (EMBEDDED, TFDS, HUB) if text.startswith(f"{k}:", start)), FILE)
    start += len(f"{kind}:") if kind != FILE else 0
    fields: dict = {"kind": kind}
    given: dict[str, str] = {}
    has_at = kind in (TFDS, HUB)
    fields["name"], end = _name(text, start, _MARKS + "@" * has_at)
    if has_at and text[end : end + 1] == "@":
        fields["at"], end = _name(text, end + 1, _MARKS)
    while end < len(text) and text[end] in "#[":
        suffix = _SUFFIX.match(text, end)
        if not suffix:
            raise UserError(
                f"{text}: '[' without ']'; expected NAME[SPLIT:LIMIT]; {_HOW_TO_ESCAPE}"
            )
        if suffix.lastgroup in given:
            raise UserError(f"{text}: a second '{text[end]}' after one name; {_HOW_TO_ESCAPE}")
        given[suffix.lastgroup], end = suffix[suffix.lastgroup], suffix.end()
    if "columns" in given:
        fields["columns"] = _columns(text, fields["name"], given["columns"])
    if "split" in given:
        fields["split"], fields["limit"] = _split_and_limit(given["split"])
    rest = text[end:].lstrip()
    if rest and rest[0] != "+":
        raise UserError(f"{text}: '{rest}' after a ']'; expected '+' or the end; {_HOW_TO_ESCAPE}")
    if not fields["name"] and kind in (FILE, EMBEDDED):
        raise UserError(f"{text}: a source without a name; expected NAME+NAME; {_HOW_TO_ESCAPE}")
    fields["written"] = text[begin:end].strip()
    return Source(**fields), len(text) - len(rest) + 1 if rest else len(text)


def _name(text: str, start: int, marks: str) -> tuple[str, int]:
    """(the name that begins at `start`, where it ends): the longest path that exists wins, marks
    and all."""
    ends = [i for i in range(start + 1, len(text) + 1) if i == len(text) or text[i] in marks + "/"]
    kept = next((i for i in reversed(ends) if _exists(text[start:i])), start)
    if kept == len(text) or text[kept] in marks and kept > start:
        name = text[start:kept]
        return (name if os.path.exists(name) else name.strip()), kept
    stops = re.escape(marks)
    end = re.compile(rf"(?:(?<=\\)[{stops}]|[^{stops}])*", re.DOTALL).match(text, kept).end()
    return (text[start:kept] + _ESCAPED.sub(r"\1", text[kept:end])).strip(), end


def _exists(path: str) -> bool:
    if not path.strip() or "\0" in path:
        return False
    return any(os.path.exists(os.path.expanduser(name)) for name in (path, path.strip()))


def _split_and_limit(text: str) -> tuple[str | None, int | None]:
    """Of the text in brackets: "train", "train:100", ":100", ""."""
    split, colon, limit = text.rpartition(":")
    if not colon or not limit.strip().isdecimal():
        return text.strip(), None
    return split.strip() or None, int(limit)


def _columns(text: str, name: str, given: str) -> tuple[tuple[str, str], ...]:
    columns: dict[str, str] = {}
    for pair in re.split(r"(?<!\\),", given):
        field, _, column = (_ESCAPED.sub(r"\1", side).strip() for side in pair.partition("="))
        if field not in FIELDS or not column or field in columns:
            raise UserError(
                f"{text}: '{pair.strip()}' after '{name}#': expected FIELD=COLUMN, once a field, "
                f"of {', '.join(FIELDS)}; or, where # belongs to the name, there is no such file: "
                f"{_HOW_TO_ESCAPE}"
            )
        columns[field] = column
    return tuple(columns.items())
