"""Which rows of a source are taken: those of a split, from an offset up to a limit, each id once."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable

from cai_jax.data.jsonl import field
from cai_jax.data.tables import TFDS
from cai_jax.errors import UserError, located


def take(source: str, path: str, rows: Iterable[tuple[int, dict]], parse: Callable[[dict, int], object], what: str, *,
         split: str | None, offset: int, limit: int | None) -> tuple[list, dict[str, int]]:
    """(items, dropped rows by reason) of `rows`, pairs of a line number and a row read from `path`.

    `parse(row, line)` gives an item with an `id`, or the reason (str) why the row is left out. `split` keeps the rows with
    that "split" field; of TFDS it was chosen in reading. `offset` and `limit` count items; reading stops at the limit, and so
    does the count of dropped rows. Raises UserError for an id that comes twice, and where no item (`what` in the message,
    plural) of `source` is left.
    """
    dropped: collections.Counter[str] = collections.Counter()
    kept: list = []
    ids: set[str] = set()
    for line, row in rows if limit != 0 else ():
        if split and not path.startswith(TFDS) and field(row, "split", str, path, line) != split:
            continue
        item = parse(row, line)
        if isinstance(item, str):
            dropped[item] += 1
            continue
        if item.id in ids:
            raise UserError(f"{located(path, line, 'id')}: '{item.id}' was there before; ids must differ")
        ids.add(item.id)
        if len(ids) > offset:
            kept.append(item)
        if limit is not None and len(kept) >= limit:
            break
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
        chosen = f" of split '{split}'" if split else ""
        raise UserError(f"{source}: 0 rows left: {len(ids)} {what}{chosen}, offset {offset}, limit {limit}, {why}")
    return kept, dict(sorted(dropped.items()))
