"""Other people's columns: `SOURCE#field=column,field=column` reads a row's `column` as our `field`.

    prompts.parquet#prompt=instruction,kind=topic          pairs.jsonl#dialogue=question,chosen=good,rejected=bad
    tfds:some_set#prompt=conversation.0.content            pairs.parquet#chosen=chosen,rejected=rejected

A dot goes into an object or, with a number, into a list. What is not named is left out, but "split" stays. Lists of
`{role, content}` or `{from, value}` are dialogues, as chat data sets write them.
"""

from __future__ import annotations

from cai_jax.data.jsonl import field as checked
from cai_jax.errors import UserError, located

MARK = "#"
FIELDS = ("prompt", "transcript", "dialogue", "chosen", "rejected", "id", "kind", "split")
ROLES = {
    "user": "human",
    "human": "human",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}


def split_source(source: str) -> tuple[str, dict[str, str]]:
    """(source, {our field: their column}); the mapping is empty where none is given."""
    source, mark, text = source.partition(MARK)
    mapping = {}
    for part in text.split(",") if mark else ():
        name, _, column = (piece.strip() for piece in part.partition("="))
        if name not in FIELDS or not column or name in mapping:
            raise UserError(
                f"{source}{MARK}{text}: '{part}': expected FIELD=COLUMN, once a field, of {', '.join(FIELDS)}"
            )
        mapping[name] = column
    return source, mapping


def rename(row: dict, mapping: dict[str, str], path, line: int) -> dict:
    """The row in our fields. Numbers become text in "id" and "kind"; a plain text in "dialogue" is a human turn."""
    found = {name: _lookup(row, column, path, line) for name, column in mapping.items()}
    for name in ("id", "kind"):
        if isinstance(found.get(name), int | float):
            found[name] = str(found[name])
    text = found.get("dialogue")
    if isinstance(text, str) and not text.startswith("\n\nHuman:"):
        found["dialogue"] = [
            {"role": "human", "text": checked(found, "dialogue", str, path, line).strip()}
        ]
    if "split" in row:
        found.setdefault("split", row["split"])
    return found


def _lookup(row: dict, column: str, path, line: int):
    value = row
    for part in [column] if column in row else column.split("."):
        if (
            isinstance(value, list)
            and part.lstrip("-").isdigit()
            and -len(value) <= int(part) < len(value)
        ):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            raise UserError(
                f"{located(path, line, column)}: missing; columns found: {', '.join(row) or 'none'}"
            )
    return value


def chat_turns(value):
    """A list of `{role, content}` or `{from, value}` as `[{role, text}, …]`; everything else as it is."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, dict) for item in value)
    ):
        return value
    for who, said in (("role", "content"), ("from", "value")):
        if all(who in item and said in item for item in value):
            return [{"role": ROLES.get(item[who], item[who]), "text": item[said]} for item in value]
    return value
