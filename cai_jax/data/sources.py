"""The one parser of source strings: which files or data sets, which columns, which split, how many
rows.

    embedded:red_team          prompts.jsonl          pairs.parquet#dialogue=question,chosen=good,rejected=bad
    tfds:NAME/CONFIG@DIRECTORY#prompt=text            hf:ORG/NAME/CONFIG@REVISION      hf:DIRECTORY
    responses:answers.jsonl    random:DIRECTORY       helpful.jsonl[train]+pairs.jsonl[0-8/10:500]+embedded:helpful[:20]

`+` joins sources. Behind a name may come columns, `#field=column,…` (`columns.py`), and `[SPLIT]`,
`[SPLIT:LIMIT]` or `[:LIMIT]`, which hold for this source alone; without them the config's fields
`split` and `limit` do. `[]` takes all rows.

A path that exists always wins as it is written, whatever characters it has ("run #1/a+b.jsonl"),
and so does every folder in front of a file that is missing. Elsewhere a backslash before one of `+
# @ [ ] ,` makes that character a part of the name: `hf:me/c\\+\\+`, `new\\#1.jsonl`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from cai_jax.errors import UserError

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
FILE, EMBEDDED, TFDS, HUB, RANDOM = "file", "embedded", "tfds", "hf", "random"
RESPONSES = "responses"
MARKS = "+#["  # what ends a name; "@" too, where a revision or directory may follow
ESCAPED = re.compile(r"\\([+#@\[\],])")
LONGEST = 4000  # characters: no longer text is a source
FIELDS = (
    *("prompt", "messages", "transcript", "dialogue", "chosen", "rejected", "id", "kind", "split"),
    *("rating", "response", "prompt_id", "num_tokens", "stop"),
    *("better", "worse", "subset", "corrects", "incorrects", "text_correct", "text_incorrect"),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of an `a+b` text. `split` and `limit` are None where the text leaves them to the
    config's fields."""

    kind: str  # file, embedded, tfds, hf or random
    name: str  # a path; what follows "embedded:", "tfds:" or "hf:" up to "@"; a model's directory
    at: str = ""  # what follows "@": a TFDS directory or a revision of the hub
    columns: tuple[tuple[str, str], ...] = ()  # (our field, their column)
    split: str | None = None
    limit: int | None = None
    answers: bool = False  # "responses:": answers of a model
    written: str = dataclasses.field(default="", compare=False)  # as in the text, marks and all

    @property
    def place(self) -> str:
        """The name for messages, without columns and split."""
        head = "" if self.kind == FILE else f"{self.kind}:"
        return f"{head}{self.name}{'@' * bool(self.at)}{self.at}"

    @property
    def stem(self) -> str:
        """The short name that generated ids and tables use: no folder, no ending."""
        folder = os.path.expanduser(self.name)
        if self.kind == HUB and os.path.isdir(folder):  # whatever way it is spelled
            return os.path.basename(os.path.abspath(folder))
        if self.kind in (TFDS, HUB):
            return self.name
        return re.sub(r"(\.jsonl|\.json|\.parquet)?(\.gz)?$", "", Path(self.name).name)

    @property
    def named_splits(self) -> bool:
        """Whether a split is chosen in reading, not by a field of the rows."""
        return self.kind in (TFDS, HUB)

    def options(self, split: str | None, limit: int | None) -> dict:
        """`split` and `limit` for this source: its own, else those of the config's fields."""
        return {
            "split": split if self.split is None else self.split,
            "limit": limit if self.limit is None else self.limit,
        }


def parse(text: str) -> tuple[Source, ...]:
    """The sources that `text` names, in its order; none where it is blank. Raises UserError for a
    mark that is used wrongly."""
    sources, position = [], 0
    while text[position:].strip():
        source, position = _one(text, position)
        sources.append(source)
    return tuple(sources)


def single(text: str) -> Source:
    """The source that `text` names, where there can be only one."""
    found = parse(text)
    if len(found) != 1:
        raise UserError(f"{text}: expected one source, found {len(found)}")
    return found[0]


def files(text: str) -> list[Path]:
    """The files and directories on this machine that a config's string names as data or as a model,
    none where it names none.

    For fingerprints: any string of a config may be given. Files of a hub repository are not named,
    its revision is (`parse(text)[i].at`); of "tfds:NAME" it is the prepared directory, where it is
    there.
    """
    if len(text) > LONGEST or "\0" in text or "://" in text:
        return []
    try:
        sources = parse(text)
    except UserError:
        return []
    return [path for source in sources for path in paths(source) if path.exists()]


def places(text: str) -> list[str]:
    """The names in `text` for tables and reports, without columns and splits; `text` itself where
    it cannot be parsed."""
    try:
        return [source.place for source in parse(text)]
    except UserError:
        return [text]


def paths(source: Source) -> Iterator[Path]:
    """Where the source would be on this machine; nothing for a name of the hub that is no
    directory."""
    if source.kind == EMBEDDED:
        yield EMBEDDED_FOLDER / f"{source.name}.jsonl"
    elif source.kind == TFDS:
        at = source.at or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        yield Path(at).expanduser() / source.name
    elif source.name:
        yield Path(source.name).expanduser()


# The parser ---------------------------------------------------------------------------------------


def _one(text: str, start: int) -> tuple[Source, int]:
    """(the source that begins at `start`, where the next one begins)."""
    start += len(text[start:]) - len(text[start:].lstrip())
    begin = start
    answers = text.startswith(f"{RESPONSES}:", start)
    start += len(f"{RESPONSES}:") * answers
    kind = next((k for k in (EMBEDDED, TFDS, HUB, RANDOM) if text.startswith(f"{k}:", start)), FILE)
    start += len(f"{kind}:") if kind != FILE else 0
    fields: dict = {"kind": kind, "answers": answers}
    fields["name"], end = _name(text, start, MARKS + "@" * (kind in (TFDS, HUB)))
    if text[end : end + 1] == "@" and kind in (TFDS, HUB):
        fields["at"], end = _name(text, end + 1, MARKS)
    while end < len(text) and text[end] in "#[":
        field = "columns" if text[end] == "#" else "split"
        if field in fields:
            raise UserError(f"{text}: a second '{text[end]}' behind one name; {_ESCAPE}")
        if field == "columns":
            stop = _find(text, end + 1, "+[")
            fields["columns"] = _columns(text, fields["name"], text[end + 1 : stop])
            end = stop
        else:
            stop = _closing(text, end)
            fields["split"], fields["limit"] = _range(text[end + 1 : stop])
            end = stop + 1
    rest = text[end:].lstrip()
    if rest and rest[0] != "+":
        raise UserError(f"{text}: '{rest}' behind a ']'; expected '+' or the end; {_ESCAPE}")
    if not fields["name"] and kind in (FILE, EMBEDDED):
        raise UserError(f"{text}: a source without a name; expected NAME+NAME; {_ESCAPE}")
    fields["written"] = text[begin:end].strip()
    return Source(**fields), len(text) - len(rest) + 1 if rest else len(text)


_ESCAPE = "write a backslash before + # @ [ ] where they belong to a name"


def _name(text: str, start: int, marks: str) -> tuple[str, int]:
    """(the name that begins at `start`, where it ends): the longest path that exists wins, marks
    and all."""
    ends = [i for i in range(start + 1, len(text) + 1) if i == len(text) or text[i] in marks + "/"]
    kept = next((i for i in reversed(ends) if _exists(text[start:i])), start)
    if kept == len(text) or text[kept] in marks and kept > start:
        name = text[start:kept]
        return (name if os.path.exists(name) else name.strip()), kept
    end = _find(text, kept, marks)
    return (text[start:kept] + ESCAPED.sub(r"\1", text[kept:end])).strip(), end


def _exists(path: str) -> bool:
    if not path.strip() or "\0" in path:
        return False
    return any(os.path.exists(os.path.expanduser(name)) for name in (path, path.strip()))


def _find(text: str, start: int, marks: str) -> int:
    """The first of `marks` from `start` that has no backslash before it; the text's end where there
    is none."""
    for index in range(start, len(text)):
        if text[index] in marks and text[index - 1 : index] != "\\":
            return index
    return len(text)


def _closing(text: str, start: int) -> int:
    """The bracket that closes the one at `start`: splits of TFDS may have brackets of their own,
    "train[:10%]"."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise UserError(f"{text}: '[' without ']'; expected NAME[SPLIT:LIMIT]; {_ESCAPE}")


def _range(text: str) -> tuple[str, int | None] | tuple[None, int]:
    """(split, limit) of what stands in brackets: "train", "train:100", ":100", ""."""
    split, colon, limit = text.rpartition(":")
    if not colon or not limit.strip().isdecimal():
        return text.strip(), None
    return split.strip() or None, int(limit)


def _columns(text: str, name: str, given: str) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for part in re.split(r"(?<!\\),", given):
        field, _, column = (ESCAPED.sub(r"\1", piece).strip() for piece in part.partition("="))
        if field not in FIELDS or not column or field in pairs:
            raise UserError(
                f"{text}: '{part.strip()}' behind '{name}#': expected FIELD=COLUMN, once a "
                "field, of "
                f"{', '.join(FIELDS)}; or, where # belongs to the name, there is no such file: "
                f"{_ESCAPE}"
            )
        pairs[field] = column
    return tuple(pairs.items())
