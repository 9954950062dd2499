"""The browsable records: one card a prompt with everything the run made of it, packed small for the
page.

A card has the dialogue and, as far as they exist, its critiques and revisions, the evaluated
models' answers, its comparisons with labels and chains of thought, and its RL rollouts. Keys are
short because they are repeated thousands of times; report.js reads them.
"""

from __future__ import annotations

import base64
import collections
import gzip
import statistics
from collections.abc import Sequence

from cai_jax.core import labels
from cai_jax.data.text_statistics import refusal_kind
from cai_jax.report.diff import word_diff
from cai_jax.report.run import Run
from cai_jax.report.text import clip, model_name, script_json, visible

BUDGET = 3_600_000  # characters of data in the page
TEXT_LIMITS = (6000, 3000, 1500, 800, 400)
PLAIN_LIMIT = 600_000  # larger data is compressed
CHAINS_A_LABEL = 4
ROLLOUTS_A_PROMPT = 4


class Deck:
    """Collects cards; `limit` caps every text, and what was cut stays in the run's own files."""

    def __init__(self, runs: Sequence[Run], limit: int):
        self.limit = limit
        self.cards: dict[str, dict] = {}
        self.principles: dict[str, str] = {}
        for index, run in enumerate(runs):
            for collect in (self.revisions, self.responses, self.answers, self.comparisons,
                            self.rollouts):  # fmt: skip
                for record, key, entry in collect(run):
                    card = self.card(record)
                    card.setdefault(key, []).append({"g": index, **entry})
        for card in self.cards.values():
            card["x"] = change(card)

    def text(self, value) -> str:
        return clip(visible(str(value if value is not None else "")), self.limit)

    def card(self, record: dict) -> dict:
        prompt = str(record.get("prompt_id", record["id"]))
        if prompt not in self.cards:
            turns = record.get("dialogue") or ()
            self.cards[prompt] = {
                "p": visible(prompt)[:80],
                "k": visible(str(record.get("kind") or "")),
                "d": [[str(m.get("role", "")), self.text(m.get("text", ""))] for m in turns],
            }
        return self.cards[prompt]

    def principle(self, name, text) -> str:
        name = visible(str(name))
        if text:
            self.principles.setdefault(name, self.text(text))
        return name

    # ---- Each gives (record, key in the card of its prompt, entry) -------------------------------

    def revisions(self, run: Run):
        for stage in run.of_kind("revise"):
            scores = run.revision_scores(stage.name)
            for record in run.records(stage.name):
                score = [rounded(value) for value in scores[record["id"]]]
                initial = before = self.text(record.get("initial"))
                rounds = []
                for turn, after_score in zip(record.get("rounds") or (), score[1:], strict=True):
                    after, critique = self.text(turn.get("revision")), turn.get("critique")
                    rounds.append(
                        {
                            "n": self.principle(
                                turn.get("principle_id"), turn.get("critique_request")
                            ),
                            "c": None if critique is None else self.text(critique),
                            "v": after,
                            "o": word_diff(before, after),
                            "s": after_score,
                        }
                    )
                    before = after
                way = rounds[0]["o"] if len(rounds) == 1 else word_diff(initial, before)
                entry = {"m": stage.name, "i": initial, "s": score[0], "r": rounds}
                yield record, "rev", {**entry, "w": way if rounds else []}

    def responses(self, run: Run):
        """Answers that were not revised (helpful samples, or a run that stopped before it
        revised)."""
        revised = {r["id"] for stage in run.of_kind("revise") for r in run.records(stage.name)}
        for stage in run.of_kind("respond"):
            for record in run.records(stage.name):
                if record["id"] not in revised:
                    yield record, "res", {"m": stage.name, "s": None, **self.answer(record)}

    def answers(self, run: Run):
        for entries in (run.evaluation, *run.further):
            order = {name: i for i, name in enumerate(entries.models)}
            scores = run.scores_of(entries.stage)
            records = run.records(entries.stage)
            for record in sorted(records, key=lambda r: (order.get(r.get("name"), 99), r["id"])):
                entry = {
                    "e": "" if entries is run.evaluation else entries.stage,
                    "m": visible(model_name(str(record.get("name", "")))),
                    "t": order.get(record.get("name"), 0),
                    "s": rounded(scores.get(record["id"])),
                }
                yield record, "ans", {**entry, **self.answer(record)}

    def answer(self, record: dict) -> dict:
        return {
            "r": self.text(record.get("response")),
            "w": record.get("num_tokens"),
            "z": record.get("stop") == "length",
            "f": refusal_kind(str(record.get("response", ""))[:4000]),
        }

    def comparisons(self, run: Run):
        entries = collections.defaultdict(list)
        for stage in run.of_kind("feedback"):
            for record in run.records(stage.name):
                chains = (record.get("chains") or ())[:CHAINS_A_LABEL]
                entries[record.get("comparison_id")].append(
                    {
                        "n": self.principle(record.get("principle_id"), record.get("principle")),
                        "g": stage.name,
                        "pair": record.get("pair") or [0, 1],
                        **label(record),
                        "ch": [self.text(chain.get("text")) for chain in chains],
                    }
                )
        for stage in run.of_kind("compare"):
            model = visible(model_name(str(stage.fields.get("model") or "").removeprefix("@")))
            for record in run.records(stage.name):
                texts = [self.text(text) for text in record.get("responses") or ()]
                entry = {"m": stage.name, "b": model, "a": texts}
                yield record, "cmp", {**entry, "l": entries.get(record["id"], [])}

    def rollouts(self, run: Run):
        """The first and the last rollouts of a prompt: what RL started from and where it went."""
        for stage in run.of_kind("rl"):
            by_prompt = collections.defaultdict(list)
            for record in run.records(stage.name, "rollouts") or run.records(stage.name):
                by_prompt[record.get("prompt_id", record["id"])].append(record)
            for records in by_prompt.values():
                records.sort(key=lambda r: (r.get("step", 0), r["id"]))
                if len(records) > ROLLOUTS_A_PROMPT:
                    half = ROLLOUTS_A_PROMPT // 2
                    records = records[:half] + records[-half:]
                for record in records:
                    kl = record.get("kl")
                    entry = {
                        "m": visible(model_name(stage.name)),
                        "r": self.text(record.get("response")),
                        "u": record.get("step"),
                        "s": rounded(record.get("reward")),
                        "kl": rounded(sum(kl) if isinstance(kl, list) else kl),
                    }
                    yield record, "roll", entry


def change(card: dict) -> float | None:
    """Score change: last revision − initial, else last model − first model."""
    for entries in card.get("rev", ()):
        last = entries["r"][-1]["s"] if entries["r"] else None
        if last is not None and entries["s"] is not None:
            return rounded(last - entries["s"])
    by_model = collections.defaultdict(list)
    for answer in card.get("ans", ()):
        if answer["s"] is not None and not answer["e"]:
            by_model[answer["t"]].append(answer["s"])
    if len(by_model) < 2:
        return None
    first, last = (statistics.fmean(by_model[of(by_model)]) for of in (min, max))
    return rounded(last - first)


def rounded(value) -> float | None:
    return round(float(value), 3) if isinstance(value, (int, float)) and value == value else None


def label(record: dict) -> dict:
    """p: P(first is better), orders and chains averaged; ab, ba: by order where asked."""
    try:
        out = {"p": rounded(labels.target([record]))}
        for order in ("ab", "ba"):
            asked = [e for e in record["logprobs"] if e["order"] == order]
            if asked:
                out[order] = rounded(statistics.fmean(map(labels.probability_first, asked)))
        return out
    except (KeyError, TypeError, ZeroDivisionError):
        return {"p": None}


def pack(runs: Sequence[Run], budget: int = BUDGET) -> tuple[str, str, dict]:
    """(text for the page, its encoding "json" or "gzip", {"shown", "total", "limit"}).

    Texts are capped harder until the data fits the budget; if that is not enough, the last cards
    are left out.
    """
    for limit in TEXT_LIMITS:
        deck = Deck(runs, limit)
        cards = list(deck.cards.values())
        text, encoding = _encode(cards, deck.principles, runs)
        if len(text) <= budget:
            break
    shown = cards
    while len(text) > budget and len(shown) > 1:
        shown = shown[: max(1, int(len(shown) * 0.95 * budget / len(text)))]
        text, encoding = _encode(shown, deck.principles, runs)
    return text, encoding, {"shown": len(shown), "total": len(cards), "limit": limit}


def _encode(cards: list[dict], principles: dict[str, str], runs: Sequence[Run]) -> tuple[str, str]:
    text = script_json(
        {"cards": cards, "principles": principles, "runs": [visible(run.name) for run in runs]}
    )
    if len(text) <= PLAIN_LIMIT:
        return text, "json"
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode(), "gzip"
