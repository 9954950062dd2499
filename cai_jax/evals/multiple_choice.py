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
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.constitution.loader import load_constitution
from cai_jax.core import accuracy, labels
from cai_jax.core.intervals import mcnemar, paired_difference, wilson
from cai_jax.data import choices, fitting
from cai_jax.errors import Waits
from cai_jax.evals import figures
from cai_jax.evals import items as items_lib
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.rows import Column, find
from cai_jax.textmodels import questions
from cai_jax.textmodels.protocol import Sampling

CONCLUSION_TOKENS = 32  # room for "So the answer is:" and an option after a chain
CHAIN_BLOCK = 32  # items whose chains are sampled together: a stopped run loses no more

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
    if fields["feedback"] or fields["choices_of_models"]:
        items_lib.choice_sets(fields["choices"], fields["num_choices"], fields["big_bench"])
    if fields["num_few_shot_chains"]:
        load_constitution(fields["constitution"])


def run(task: Task) -> Measured:
    """Every answering model on every set: the feedback model, and with `choices_of_models` the
    evaluated ones, with their paired differences to the first."""
    fields, out, curves, few_shot = task.fields, [], {}, []
    answering = {fields.feedback: fields.feedback} if fields.feedback else {}
    if fields.choices_of_models:
        answering |= {k: value for k, value in task.models.items() if k not in task.written}
    sets = (
        items_lib.choice_sets(fields.choices, fields.num_choices, fields.big_bench)
        if answering
        else {}
    )
    for on, items in sets.items():
        first: dict[str, list[dict]] = {}
        for name, reference in answering.items():
            asking = ModelOnSet(task, on, items, name, reference, leading=not first)
            answers = asking.by_mode()
            for mode, records in answers.items():
                plain = answers[ZERO_SHOT] if mode != ZERO_SHOT else ()
                out += asking.rows(mode, records, plain)
                curves |= asking.curves(mode, records)
                few_shot += asking.examples_shown(mode, records)
                if mode in first:
                    leader = next(iter(answering))
                    out.append(asking.difference(on, mode, records, {leader: first[mode]}))
            first = first or answers
    out += [
        ERROR[mode].row(on, name, accuracy.calibration(points))
        for (name, mode, on), points in curves.items()
    ]
    headline = ", ".join(
        f"{row['on']} {row['value']:.0%} {MODES[mode]}"
        for mode in (ZERO_SHOT, FEW_SHOT)
        for row in find(out, ACCURACY[mode].name)
        if ":" not in row["on"]
    )
    left_out = fitting.examples_left_out(few_shot) if any(of for _, of in few_shot) else {}
    drawn = figures.calibration(
        {f"{name}, {CLAMPED[mode]}, {on}": points for (name, mode, on), points in curves.items()}
    )
    return Measured(out, COLUMNS if out else (), drawn, headline=headline, few_shot=left_out)


@dataclasses.dataclass
class ModelOnSet:
    """A model (its name and reference) that answers the items of a set (`on`). `leading`: the first
    model; in the journal only the ids of later ones begin with their names."""

    task: Task
    on: str
    items: list
    name: str
    reference: str
    leading: bool = True

    # Asking ---------------------------------------------------------------------------------------

    def by_mode(self) -> dict[str, list[dict]]:
        """Mode → records of the items that fit the context, from the journal or by the model."""
        task, journal = self.task, self.task.journal("choices")
        shots = items_lib.draw_shots(self.items, task.fields.num_few_shot, task.seed)
        few_shot, chains = any(shots.values()), task.fields.num_chains
        modes = {ZERO_SHOT: True, FEW_SHOT: few_shot, CHAINS: bool(chains)}
        prefix, model, answers = "" if self.leading else f"{self.name}/", None, {}
        waits = Waits()
        for mode in (mode for mode, wanted in modes.items() if wanted):
            ids = {item.id: f"{prefix}{self.on}/{mode}/{item.id}" for item in self.items}
            missing = {name for name, key in ids.items() if key not in journal.finished}
            if missing:
                model = model or task.ctx.models.text_model(self.reference, task.ctx.config.format)
                if mode == CHAINS:
                    answered = self.after_chains(model, missing)
                else:
                    answered = self.at_once(model, shots if mode == FEW_SHOT else {}, missing)
                about = {"on": self.on, "mode": mode, "name": self.name, "model": model.name}
                with waits.later():
                    for record in answered:
                        name = record["item"]
                        journal.append(about | record | {"id": ids[name]})
                journal.flush()
            records = [journal.finished.get(key) for key in ids.values()]
            if any(records):
                answers[mode] = [record for record in records if record]
        waits.check()
        return answers

    def at_once(self, model, shots: Mapping, missing: set[str]) -> Iterator[dict]:
        """The missing items without chains. They share forward passes with others of the set,
        always with the same ones: a restart changes nothing."""
        items = {item.id: item for item in self.items}
        asked = [items_lib.question(item, shots.get(item.id, ())) for item in self.items]
        label = f"{self.task.ctx.name}: {self.on}"
        for choice in self.task.ctx.choose(model, asked, label, wanted=missing, together=True):
            few_shot = choice.num_examples if shots else None
            record = _record(items[choice.id], labels.normalise(choice.logprobs), few_shot)
            yield record | {"logprobs": choice.logprobs, **choice.obtained()}

    def after_chains(self, model, missing: set[str]) -> Iterator[dict]:
        """The missing items after chains of thought, whose probabilities are averaged."""
        rest, waits = [item for item in self.items if item.id in missing], Waits()
        for start in range(0, len(rest), CHAIN_BLOCK):
            with waits.later():
                yield from self._block_after_chains(model, rest[start : start + CHAIN_BLOCK])
        waits.check()

    def _block_after_chains(self, model, items: Sequence) -> Iterator[dict]:
        task, fields, ctx = self.task, self.task.fields, self.task.ctx
        worked, label = items_lib.worked_chains(fields, task.seed), f"{ctx.name}: {self.on}"
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
        concluded = {choice.id: choice for choice in ctx.choose(model, conclusions, label)}
        for item in items:
            names = [n for n, of in of_chain.items() if of is item and n in concluded]
            if names:
                by_chain = [labels.normalise(concluded[name].logprobs) for name in names]
                mean = tuple(np.mean(by_chain, axis=0).tolist())
                record = _record(item, mean, chains[names[0]].num_examples)
                texts = [chains[name].text for name in names]
                how = concluded[names[0]].how
                yield record | {"chains": texts, "by_chain": by_chain, "how": how}

    def examples_shown(self, mode: str, records: Sequence[Mapping]) -> list[tuple[int, int]]:
        """(worked examples shown, wanted) of every record, see `fitting.examples_left_out`."""
        fields = self.task.fields
        if mode == ZERO_SHOT:
            return []
        wanted = items_lib.num_shots_of(self.items, fields.num_few_shot)
        if mode == CHAINS:
            wanted = len(items_lib.worked_chains(fields, self.task.seed))
        return [(record["num_few_shot"], wanted) for record in records]

    # Counting -------------------------------------------------------------------------------------

    def rows(self, mode: str, records: Sequence[Mapping], plain: Sequence[Mapping] = ()) -> list:
        """Accuracy over all and by subset with its baselines, the paired difference to `plain` (the
        zero-shot answers), the first of several chains alone, and the share of first options."""
        subsets, out = collections.defaultdict(list), []
        for record in records:
            subsets[f"{self.on}:{record['subset']}"].append(record)
        groups = {self.on: records} | (dict(sorted(subsets.items())) if len(subsets) > 1 else {})
        for on, of in groups.items():
            values = {record["item"]: right(record) for record in of}
            base = items_lib.baselines([item for item in self.items if item.id in values])
            mean = wilson(sum(values.values()), len(values))
            more = {"baseline": base, "values": values}
            out.append(ACCURACY[mode].row(on, self.name, mean, **more))
            if plain:
                before = [record for record in plain if record["item"] in values]
                out.append(self.difference(on, mode, of, {ZERO_SHOT: before}))
            if all(len(record["by_chain"]) > 1 for record in of):
                alone = [right(record | {"probabilities": record["by_chain"][0]}) for record in of]
                mean = wilson(sum(alone), len(alone))
                out.append(ONE_CHAIN.row(on, self.name, mean, baseline=base))
        # Far from the true share of first options, the model answers by position.
        n, picked = len(records), [int(np.argmax(record["probabilities"])) for record in records]
        base = {"right": sum(record["correct"] == 0 for record in records) / n}
        share = wilson(picked.count(0), n)
        return [*out, FIRST_OPTION[mode].row(self.on, self.name, share, baseline=base)]

    def difference(self, on: str, mode: str, records: Sequence[Mapping], before: Mapping) -> dict:
        """The paired difference to other answers to the same items.

        Args:
            on: the set, or a subset of it.
            mode: in which the records were asked.
            records: the answers.
            before: {whose the other answers are: the other answers}.

        Returns:
            A row.
        """
        ((other, others),) = before.items()
        now, then = ({record["item"]: right(record) for record in of} for of in (records, others))
        gap = paired_difference(then, now, shares=True)
        p_value = mcnemar(then, now)
        return ACCURACY[mode].row(on, self.name, gap, against=other, p_value=p_value)

    def curves(self, mode: str, records: Sequence[Mapping]) -> dict[tuple, list[dict]]:
        """(model, mode, set) → reliability curve of questions with two options. After chains there
        is a second one of probabilities clamped to `clamp`, being what a preference model then
        learns from."""
        if any(len(record["probabilities"]) != 2 for record in records):
            return {}
        p = np.array([record["probabilities"][record["correct"]] for record in records])
        stated, clamp = {mode: p}, tuple(self.task.fields.clamp)
        if mode == CHAINS and clamp:
            stated[f"{CHAINS}_clamped"] = np.clip(p, *clamp)
        return {
            (self.name, name, self.on): accuracy.reliability(*accuracy.confidence(values))
            for name, values in stated.items()
        }


# What is answered ---------------------------------------------------------------------------------


def _record(item, probabilities, num_few_shot: int | None) -> dict:
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
        "logprobs": (),
        "num_few_shot": num_few_shot,
    }


def right(record: Mapping) -> float:
    """1 for a right answer, 1/k for a k-way tie at the top that includes it, else 0."""
    p, top = record["probabilities"], max(record["probabilities"])
    return 1.0 / p.count(top) if p[record["correct"]] == top else 0.0
