"""Writes the microworld's rated dialogues in the schema of hh-rlhf's red-team attempts: the rating
is the oracle's severity.

    python -m cai_jax.microworld.rated [--out DIRECTORY]

Rows of the split "heldout" are about held-out acts only, no other row is.
"""

from __future__ import annotations

import json
import pathlib
import sys

from cai_jax.errors import Parser, command
from cai_jax.microworld import documents
from cai_jax.microworld.documents import Dice
from cai_jax.microworld.oracle import judge

DATA = pathlib.Path(__file__).resolve().parent / "data"
ASKED = {"harmful": 0.7, "look_alike": 0.15, "plain": 0.05, "mixed": 0.1}
BEHAVIOUR = (0.6, 0.18, 0.08, 0.07, 0.07)  # comply, ideal, evade, refuse all, err
COUNTS = {"train": 1200, "heldout": 240}


def rated(seed: int = 10, counts: dict[str, int] = COUNTS) -> list[dict]:
    """{"id", "transcript", "rating", "kind", "split"}; no transcript comes twice."""
    rows, seen = [], set()
    for split, count in counts.items():
        dice = Dice(seed, len(rows), held_out=split == "heldout")
        wanted = len(rows) + count
        while len(rows) < wanted:
            asked, text = documents.draw_request(dice, ASKED)
            response = documents.behave(dice, asked, BEHAVIOUR)
            transcript = f"\n\nHuman: {text}\n\nAssistant: {response}"
            # Equal transcripts on both sides of a holdout would leak.
            if transcript not in seen:
                seen.add(transcript)
                verdict = judge(asked, response)
                rows.append(
                    {
                        "id": f"rated-{len(rows):04d}",
                        "transcript": transcript,
                        "rating": float(verdict.severity),
                        "kind": verdict.harm,
                        "split": split,
                    }
                )
    return rows


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=DATA)
    path = parser.parse_args(arguments).out / "ratings.jsonl"
    rows = rated()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    sys.exit(main())
