"""Language models answer lettered questions: the option with the highest log-probability is the
answer.

Zero-shot, few-shot (items of the same set as worked examples, never of themselves) and chain of
thought with an ensemble of sampled chains whose probabilities are averaged (sections 2 and 4.1 of
the paper). Every mode answers every item. Baselines: chance, the most frequent right letter, and
always the longer option.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.constitution.loader import load_constitution
from cai_jax.data import choices, fitting, sources
from cai_jax.data.evals import load_choices, split_by_big_bench
from cai_jax.evals import calibration, figures
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.intervals import mcnemar, paired_difference, wilson
from cai_jax.evals.rows import Column, find
from cai_jax.structs import Dialogue
from cai_jax.textmodels import questions
from cai_jax.textmodels.protocol import Sampling

CONCLUSION_TOKENS = 32  # room for "So the answer is:" and an option after a chain
CHAIN_BLOCK = 32  # items whose chains are sampled together: a stopped run loses no more
OPTION_LINE = re.compile(r"^\s*\(([A-Z])\)\s?(.*?)(?=^\s*\([A-Z]\)|\Z)", re.MULTILINE | re.DOTALL)

ZERO_SHOT, FEW_SHOT, CHAINS = "zero_shot", "few_shot", "chain_of_thought"
MODES = {ZERO_SHOT: "zero-shot", FEW_SHOT: "few-shot", CHAINS: "chains of thought"}
CLAMPED = {**MODES, f"{CHAINS}_clamped": "chains of thought, clamped"}
ACCURACY = {
    mode: Column(f"choice_{mode}", f"Accuracy, {label}", "accuracy", "higher", "judges")
    for mode, label in MODES.items()
}
ONE_CHAIN = Column(
    "choice_one_chain", "Accuracy, one chain of thought", "accuracy", "higher", "judges"
)
FIRST_OPTION = {
    mode: Column(f"first_option_{mode}", f"(A), {label}", "share", None, "judges", compared=False)
    for mode, label in MODES.items()
}
ERROR = {
    mode: Column(f"ece_{mode}", f"ECE, {label}", "ECE", "lower", "judges", compared=False)
    for mode, label in CLAMPED.items()
}
COLUMNS = (*ACCURACY.values(), ONE_CHAIN, *FIRST_OPTION.values(), *ERROR.values())


def check(fields: Mapping) -> None:
    """Raises UserError where the questions, or the constitution of worked chains, cannot be
    read."""
    choice_sets(fields["choices"], fields["num_choices"], fields["big_bench"])
    if fields["num_few_shot_chains"]:
        load_constitution(fields["constitution"])


def run(task: Task) -> Measured:
    """Every answering model on every set: the feedback model, and with `choices_of_models` the
    evaluated ones, with their paired differences to the first."""
    fields, out, curves, few_shot = task.fields, [], {}, []
    answering = {fields.feedback: fields.feedback} if fields.feedback else {}
    if fields.choices_of_models:
        answering |= {k: value for k, value in task.models.items() if k not in task.written}
    sets = choice_sets(fields.choices, fields.num_choices, fields.big_bench) if answering else {}
    for on, items in sets.items():
        first: dict[str, list[dict]] = {}
        for name, reference in answering.items():
            # In the journal only the ids of later models begin with their names.
            asking = Asking(task, on, items, name, reference, f"{name}/" if first else "")
            answers = asking.by_mode()
            for mode, records in answers.items():
                plain = answers[ZERO_SHOT] if mode != ZERO_SHOT else ()
                out += rows(name, on, mode, items, records, curves, plain, tuple(fields.clamp))
                if mode in first:
                    leader = next(iter(answering))
                    out.append(difference(name, on, mode, records, first[mode], leader))
                few_shot += asking.examples_shown(mode, records)
            first = first or answers
    headline = ", ".join(
        f"{row['on']} {row['value']:.0%} {MODES[mode]}"
        for mode in (ZERO_SHOT, FEW_SHOT)
        for row in find(out, ACCURACY[mode].name)
        if ":" not in row["on"]
    )
    left_out = fitting.examples_left_out(few_shot) if any(of for _, of in few_shot) else {}
    drawn = figures.calibration(curves)
    return Measured(out, COLUMNS if out else (), drawn, headline=headline, few_shot=left_out)


@dataclasses.dataclass
class Asking:
    """A model (its name and reference) that answers the items of a set (`on`). `prefix`: of its ids
    in the journal."""

    task: Task
    on: str
    items: list
    name: str
    reference: str
    prefix: str

    def by_mode(self) -> dict[str, list[dict]]:
        """Mode → records of the items that fit the context, from the journal or by the model."""
        task, journal = self.task, self.task.journal("choices")
        shots = draw_shots(self.items, task.fields.num_few_shot, task.seed)
        few_shot, chains = any(shots.values()), task.fields.num_chains
        modes = {ZERO_SHOT: True, FEW_SHOT: few_shot, CHAINS: bool(chains)}
        model, answers = None, {}
        for mode in (mode for mode, wanted in modes.items() if wanted):
            ids = {item.id: f"{self.prefix}{self.on}/{mode}/{item.id}" for item in self.items}
            missing = {name for name, key in ids.items() if key not in journal.finished}
            if missing:
                model = model or task.ctx.models.text_model(self.reference, task.ctx.config.format)
                if mode == CHAINS:
                    answered = self.after_chains(model, missing)
                else:
                    answered = self.at_once(model, shots if mode == FEW_SHOT else {}, missing)
                about = {"on": self.on, "mode": mode, "name": self.name, "model": model.name}
                for record in answered:
                    name = record["item"]
                    journal.append(about | record | {"id": ids[name]})
                journal.flush()
            records = [journal.finished.get(key) for key in ids.values()]
            if any(records):
                answers[mode] = [record for record in records if record]
        return answers

    def at_once(self, model, shots: Mapping, missing: set[str]) -> Iterator[dict]:
        """The missing items without chains. They share forward passes with others of the set,
        always with the same ones: a restart changes nothing."""
        items = {item.id: item for item in self.items}
        asked = [question(item, shots.get(item.id, ())) for item in self.items]
        label = f"{self.task.ctx.name}: {self.on}"
        for choice in self.task.ctx.choose(model, asked, label, wanted=missing, together=True):
            few_shot = choice.num_examples if shots else None
            yield _record(items[choice.id], normalise(choice.logprobs), few_shot, choice.logprobs)

    def after_chains(self, model, missing: set[str]) -> Iterator[dict]:
        """The missing items after chains of thought, whose probabilities are averaged."""
        rest = [item for item in self.items if item.id in missing]
        for start in range(0, len(rest), CHAIN_BLOCK):
            yield from self._block_after_chains(model, rest[start : start + CHAIN_BLOCK])

    def _block_after_chains(self, model, items: Sequence) -> Iterator[dict]:
        task, fields, ctx = self.task, self.task.fields, self.task.ctx
        worked, label = worked_chains(fields, task.seed), f"{ctx.name}: {self.on}"
        asked = {item.id: choices.without_lead(item.prompt) for item in items}
        of_chain = {f"{item.id}#{k}": item for item in items for k in range(fields.num_chains)}

        # ---- Chains ------------------------------------------------------------------------------
        room, turns = fields.max_chain_tokens + CONCLUSION_TOKENS, []
        for name, item in of_chain.items():
            key = seeds.row_key(task.seed, "multiple_choice", item.id, int(name.rpartition("#")[2]))
            about = {"group": item.id, "room": room}
            turns.append(questions.chain(name, asked[item.id], key, worked, **about))
        sampling = Sampling(fields.max_chain_tokens, ctx.config.temperature)
        done = ctx.generate(model, turns, sampling, f"{label}, chains of thought")
        chains = {chain.id: chain for chain in done}

        # ---- Conclusions -------------------------------------------------------------------------
        conclusions = []
        for name, chain in sorted(chains.items()):
            item, shown = of_chain[name], worked[: chain.num_examples]
            text = asked[item.id]
            conclusions.append(questions.after_chain(name, text, chain.text, item.options, shown))
        concluded = {
            choice.id: normalise(choice.logprobs)
            for choice in ctx.choose(model, conclusions, label)
        }
        for item in items:
            names = [n for n, of in of_chain.items() if of is item and n in concluded]
            if names:
                by_chain = [concluded[name] for name in names]
                mean = tuple(np.mean(by_chain, axis=0).tolist())
                record = _record(item, mean, chains[names[0]].num_examples)
                texts = [chains[name].text for name in names]
                yield record | {"chains": texts, "by_chain": by_chain}

    def examples_shown(self, mode: str, records: Sequence[Mapping]) -> list[tuple[int, int]]:
        """(worked examples shown, wanted) of every record, see `fitting.examples_left_out`."""
        fields = self.task.fields
        if mode == ZERO_SHOT:
            return []
        wanted = num_shots_of(self.items, fields.num_few_shot)
        if mode == CHAINS:
            wanted = len(worked_chains(fields, self.task.seed))
        return [(record["num_few_shot"], wanted) for record in records]


# What is asked ------------------------------------------------------------------------------------


def choice_sets(text: str, limit: int | None, big_bench: str = "") -> dict[str, list]:
    """Set name → items, for "a+b": every source is a set of its own, named by its file."""
    sets, parsed = {}, sources.parse(text)
    stems = [source.stem.rpartition("/")[2].partition(".")[0] for source in parsed]
    names = [stem.removeprefix("eval_") for stem in stems]
    for source, name, longer in zip(parsed, names, sources.distinct_names(parsed), strict=True):
        items = load_choices(source)
        items = split_by_big_bench(items, big_bench) if big_bench else items
        count = len(items) if limit is None else min(limit, len(items))
        # Evenly: files are in order of subset.
        sets[name if names.count(name) == 1 else longer] = [
            items[index * len(items) // count] for index in range(count)
        ]
    return sets


def closed(prompt: str) -> str:
    """The item's text up to "The answer is:", which is added where a file leaves it out."""
    ends = prompt.rstrip().endswith(choices.ANSWER_LEAD)
    return prompt.rstrip() if ends else f"{prompt}\n{choices.ANSWER_LEAD}"


def num_shots_of(items: Sequence, num_shots: int) -> int:
    """How many worked examples an item of the set has: fewer where the set does not have twice as
    many items."""
    return min(num_shots, len(items) // 2)


def draw_shots(items: Sequence, num_shots: int, seed: int) -> dict[str, list]:
    """Item id → its worked examples, drawn once for all models.

    All items have the same ones, but those that are these worked examples themselves: they have
    another draw. So every item is answered, none is shown its own answer, and only two shared
    prefixes are prefilled.
    """
    count = num_shots_of(items, num_shots)
    order = seeds.row_rng(seed, "multiple_choice", "shots").permutation(len(items)).tolist()
    first, second = sorted(order[:count]), sorted(order[count : 2 * count])
    return {
        item.id: [items[j] for j in (second if i in first else first)]
        for i, item in enumerate(items)
    }


def question(item, shots: Sequence = ()) -> questions.Question:
    """The item with its options after "The answer is:", after worked examples."""
    examples = [
        questions.worked_choice(closed(shot.prompt), shot.options[shot.correct]) for shot in shots
    ]
    return questions.choice(item.id, closed(item.prompt), item.options, examples, verbatim=True)


def worked_chains(fields: Mapping, seed: int) -> list[Dialogue]:
    """The first worked chains of the constitution, each by a principle of its own draw. All items
    have the same ones, so that they are prefilled once."""
    if not fields["num_few_shot_chains"]:
        return []
    constitution = load_constitution(fields["constitution"])
    rng, principles = (
        seeds.row_rng(seed, "multiple_choice", "chains"),
        constitution.comparison_principles,
    )
    return [
        questions.worked_chain(
            example.question(principles[int(rng.integers(len(principles)))].text),
            example.reasoning,
            f" ({example.answer})",
        )
        for example in constitution.chain_examples[: fields["num_few_shot_chains"]]
    ]


# What is answered ---------------------------------------------------------------------------------


def normalise(logprobs: Sequence[float]) -> tuple[float, ...]:
    """softmax of the options' log-probabilities [C]."""
    x = np.asarray(logprobs, np.float64)
    if not np.any(np.isfinite(x)):
        raise ValueError("no option has a finite log-probability")
    weights = np.exp(x - x.max())
    return tuple((weights / weights.sum()).tolist())


def _record(item, probabilities, num_few_shot: int | None, logprobs: Sequence[float] = ()) -> dict:
    """An answered item. `probabilities` [C] are normalised against each other; after chains they
    are means of those in `by_chain`. num_few_shot: worked examples before it; None where
    zero-shot."""
    return {
        "item": item.id,
        "subset": item.subset,
        "probabilities": probabilities,
        "correct": item.correct,
        "chains": (),
        "by_chain": (),
        "logprobs": logprobs,
        "num_few_shot": num_few_shot,
    }


def right(record: Mapping) -> float:
    """1 for a right answer, 1/k for a k-way tie at the top that includes it, else 0."""
    p, top = record["probabilities"], max(record["probabilities"])
    return 1.0 / p.count(top) if p[record["correct"]] == top else 0.0


def difference(
    model: str,
    on: str,
    mode: str,
    records: Sequence[Mapping],
    before: Sequence[Mapping],
    other: str,
) -> dict:
    """The paired difference to other answers to the same items.

    Args:
        model, on, mode, records: as in `rows`.
        before: the other answers.
        other: whose they are.
    """
    now, then = ({record["item"]: right(record) for record in of} for of in (records, before))
    gap = paired_difference(then, now, shares=True)
    return ACCURACY[mode].row(on, model, gap, against=other, p_value=mcnemar(then, now))


def rows(
    model: str,
    on: str,
    mode: str,
    items: Sequence,
    records: Sequence[Mapping],
    curves: dict,
    plain: Sequence[Mapping] = (),
    clamp: Sequence[float] = (),
) -> list[dict]:
    """The rows of one mode on one set: accuracy over all and by subset with its baselines, the
    paired difference to the same items zero-shot, the first of several chains alone, the share of
    first options, and calibration.

    Args:
        model: the answering model's name.
        on: the set's name.
        mode: ZERO_SHOT, FEW_SHOT or CHAINS.
        items: the set.
        records: the answers to those that fitted the context.
        curves: where reliability curves go.
        plain: the zero-shot answers, for the difference.
        clamp: (low, high) that probabilities after chains are clamped to in a second curve, being
            what a preference model then learns from; empty for none.
    """
    subsets, out = collections.defaultdict(list), []
    for record in records:
        subsets[f"{on}:{record['subset']}"].append(record)
    groups = {on: records} | (dict(sorted(subsets.items())) if len(subsets) > 1 else {})
    for name, of in groups.items():
        values = {record["item"]: right(record) for record in of}
        base = baselines([item for item in items if item.id in values])
        mean = wilson(sum(values.values()), len(values))
        out.append(ACCURACY[mode].row(name, model, mean, baseline=base, values=values))
        if plain:
            before = [record for record in plain if record["item"] in values]
            out.append(difference(model, name, mode, of, before, ZERO_SHOT))
        if all(len(record["by_chain"]) > 1 for record in of):
            alone = [right(record | {"probabilities": record["by_chain"][0]}) for record in of]
            out.append(ONE_CHAIN.row(name, model, wilson(sum(alone), len(alone)), baseline=base))
    # Far from the true share of first options, the model answers by position.
    n, picked = len(records), [int(np.argmax(record["probabilities"])) for record in records]
    base = {"right": sum(record["correct"] == 0 for record in records) / n}
    out.append(FIRST_OPTION[mode].row(on, model, wilson(picked.count(0), n), baseline=base))
    if any(len(record["probabilities"]) != 2 for record in records):
        return out
    p = np.array([record["probabilities"][record["correct"]] for record in records])
    stated = {mode: p}
    if mode == CHAINS and clamp:
        stated[f"{CHAINS}_clamped"] = np.clip(p, *clamp)
    for name, values in stated.items():
        bins = calibration.reliability(*calibration.confidence(values))
        curves[f"{model}, {CLAMPED[name]}, {on}"], error = calibration.curve(bins)
        out.append(ERROR[name].row(on, model, error))
    return out


def option_texts(item) -> list[str] | None:
    """The options' texts: the dialogues' last turns where given, else the "(A) …" lines of the
    prompt, else None."""
    if item.dialogues and len(item.options) == 2:
        texts = [item.dialogues[0][-1].text, item.dialogues[1][-1].text]
        return texts if item.correct == 0 else texts[::-1]
    tail = choices.without_lead(item.prompt)
    lines = OPTION_LINE.findall(tail[tail.rfind("Options:") :] if "Options:" in tail else tail)
    return [text.strip() for _, text in lines] if len(lines) == len(item.options) else None


def baselines(items: Sequence) -> dict[str, float | None]:
    """chance: mean of 1/options; majority: the most frequent right letter; longer: the longest
    option, ties split."""
    if not items:
        return {"chance": None, "majority": None, "longer": None}
    letters = collections.Counter(item.options[item.correct] for item in items)
    longer = []
    for item in items:
        texts = option_texts(item)
        if texts is not None:
            top = max(map(len, texts))
            tied = [i for i, text in enumerate(texts) if len(text) == top]
            longer.append(1.0 / len(tied) if item.correct in tied else 0.0)
    return {
        "chance": float(np.mean([1 / len(item.options) for item in items])),
        "majority": max(letters.values()) / len(items),
        "longer": float(np.mean(longer)) if len(longer) == len(items) else None,
    }
