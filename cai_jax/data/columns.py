"""Other people's columns: `SOURCE#field=column,field=column` reads a row's `column` as our `field`.

    prompts.parquet#prompt=instruction,kind=topic          pairs.jsonl#dialogue=question,chosen=good,rejected=bad
    tfds:some_set#prompt=conversation.0.content            answers.jsonl#response=output

A dot goes into an object or, with a number, into a list. What is not named is left out, but "split"
stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.data.jsonl import field
from cai_jax.data.sources import FIELDS
from cai_jax.errors import UserError, located

# How published files call what we call …
USUAL = {
    "prompt": ("question", "instruction", "query", "input", "request", "problem", "goal", "text"),
    "chosen": ("better", "good", "preferred", "accepted", "response_chosen", "chosen_response"),
    "rejected": ("worse", "bad", "dispreferred", "response_rejected", "rejected_response"),
    "transcript": ("text", "dialogue", "conversation"),
    "rating": ("score", "label", "harm"),
    "response": ("answer", "output", "completion", "generation", "text"),
}


def rename(row: dict, mapping: Sequence[tuple[str, str]], place: str, line: int) -> dict:
    """The row in our fields: `mapping` has (our field, their column)."""
    renamed = {name: _lookup(row, column, place, line) for name, column in mapping}
    if "split" in row:
        renamed.setdefault("split", row["split"])
    return renamed


def _lookup(row: dict, column: str, place: str, line: int):
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
                f"{located(place, line, column)}: missing; columns: {', '.join(row) or 'none'}"
            )
    return value


def require(row: dict, name: str, place: str, line: int):
    """`row[name]`. UserError where it is missing, with the column that is to be named instead, or
    null."""
    if row.get(name) is not None:
        return row[name]
    where = located(place, line, name)
    if name in row:
        raise UserError(f"{where}: is null")
    close = next((column for column in USUAL.get(name, ()) if column in row), None)
    texts = [column for column in row if isinstance(row[column], str | list)]
    guess = close or next((column for column in texts if column not in FIELDS), "COLUMN")
    raise UserError(
        f"{where}: missing; fields: {', '.join(row) or 'none'}; name the column that has it: "
        f"{place}#{name}={guess}"
    )


def label(row: dict, name: str, place: str, line: int) -> str | None:
    """A text that names something ("id", "kind"); numbers become text, None where it is missing or
    null."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return field(row, name, str, place, line)
