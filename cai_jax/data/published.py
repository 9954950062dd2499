"""`python -m cai_jax.data.published DIR`: downloads the public files that the published results
were made from.

They get the names under which `configs/results/smollm2.py:data=DIR` and
`configs/evaluations.py:data=DIR` look for them. Files that are there already stay. Much of the text
is offensive: it was written to provoke.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cai_jax.errors import Parser, UserError, command

HH_RLHF = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/"
XSTEST = "https://raw.githubusercontent.com/paul-rottger/exaggerated-safety/main/"
PAPER = "https://raw.githubusercontent.com/anthropics/ConstitutionalHarmlessnessPaper/main/"
# File in DIR → (address, what is made of it). "turns": the first human turn of each chosen
# dialogue, every one once; "table": the rows of a CSV file; "gzip": its lines as they are.
FILES = {
    "hh_harmless_base.jsonl.gz": (HH_RLHF + "harmless-base/test.jsonl.gz", "same"),
    "hh_helpful_base.jsonl.gz": (HH_RLHF + "helpful-base/test.jsonl.gz", "same"),
    "hh_helpful_rejection_sampled.jsonl.gz": (
        HH_RLHF + "helpful-rejection-sampled/test.jsonl.gz",
        "same",
    ),
    "eval_xstest.jsonl.gz": (XSTEST + "xstest_prompts.csv", "table"),
    "redteam_hh_harmless_first_turns.jsonl.gz": (HH_RLHF + "harmless-base/train.jsonl.gz", "turns"),
    "helpful_hh_first_turns.jsonl.gz": (HH_RLHF + "helpful-base/train.jsonl.gz", "turns"),
    **{
        f"eval_{name}.jsonl.gz": (PAPER + f"evals/{name}.jsonl", "gzip")
        for name in ("438HHHEvaluations", "HarmfulVsEthical", "HarmfulnessClassification")
    },
    **{
        f"official/prompts/{name}.json": (PAPER + f"prompts/{name}.json", "same")
        for name in (
            "CritiqueRevisionInstructions",
            "CritiqueRevisionFewShotPrompts",
            "RLMadisonInstructions",
            "RLMadisonFewShotPrompts",
            "RLMadisonPrecogFewShotPrompts",
        )
    },
}


def first_turns(lines: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Lines {"prompt"} of the first human turns of hh-rlhf's rows, each text once, in the order of
    the file."""
    seen = set()
    for number, line in enumerate(lines, 1):
        try:
            chosen = json.loads(line)["chosen"]
            prompt = chosen.split("\n\nHuman:", 1)[1].split("\n\nAssistant:", 1)[0].strip()
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"{where}:{number}: expected a row of hh-rlhf with the field 'chosen' that "
                "begins with a human turn"
            ) from error
        if prompt and prompt not in seen:
            seen.add(prompt)
            yield json.dumps({"prompt": prompt}, ensure_ascii=False).encode() + b"\n"


def made_of(data: bytes, how: str, where: str) -> bytes:
    """The bytes of the file that is made of a download."""
    if how == "turns":
        data = b"".join(first_turns(gzip.decompress(data).splitlines(), where))
    if how == "table":
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    return data if how == "same" else gzip.compress(data, mtime=0)


def fetch(folder, files: dict[str, tuple[str, str]] = FILES) -> Iterator[tuple[str, str]]:
    """(file, what happened) for each file; what is there already is kept, and a file is written
    completely or not at all."""
    for name, (address, how) in files.items():
        path = Path(folder) / name
        if path.exists():
            yield name, "is there"
            continue
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                data = made_of(response.read(), how, address)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(data)
            part.replace(path)
        except (urllib.error.URLError, EOFError, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{address}: not downloaded ({getattr(error, 'reason', error)}); put the file "
                f"at {path} by other means, or run the same command again: files that are there "
                "are kept"
            ) from error
        yield name, f"{len(data):,} bytes"


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.data.published", description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="where the files are put")
    for name, what in fetch(parser.parse_args((sys.argv if argv is None else argv)[1:]).folder):
        print(f"{name}: {what}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
