"""The workloads of `benchmarks.sampling` that run a complete stage, records written, against the
same work by other means."""

from __future__ import annotations

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from benchmarks.workloads import (
    ANSWER,
    LIMIT,
    OFFICIAL,
    PEER_BATCH,
    Bench,
    Peers,
    Took,
    Workload,
    even_parts,
)
from cai_jax.constitution.loader import load_constitution
from cai_jax.core import losses, sharding
from cai_jax.data.comparisons import load_comparisons
from cai_jax.io import artefacts
from cai_jax.models import decoder
from cai_jax.stages import feedback as feedback_stage
from cai_jax.stages import revise as revise_stage
from cai_jax.stages.context import StageContext
from cai_jax.structs import Message, ScoreRequest, dialogue_to_json
from cai_jax.textmodels.loader import LoadedModel, ModelLoader
from configs import default

BATCH = 16
FORWARD_BATCH = 4  # texts in a plain pass: of these lengths more rows are not faster
LABEL_PARTS = 16


class _Warm(ModelLoader):
    """A loader whose model is loaded already: what is measured is the stage. It keeps what was
    asked to be scored."""

    def __init__(self, bench: Bench, *args):
        super().__init__(*args)
        self.bench, self.asked = bench, []

    def load(self, *_, **__) -> LoadedModel:
        return LoadedModel("smollm2", self.bench.config, self.bench.params, self.bench.format)

    def engine(self, model: LoadedModel, **options):
        engine = super().engine(model, **options)
        score = engine.score

        def kept(requests, **how):
            self.asked = list(requests)
            return score(requests, **how)

        engine.score = kept
        return engine


def _run(
    bench: Bench, stage, name: str, fields: dict, inputs: dict[str, list[dict]]
) -> tuple[Took, StageContext, list[dict]]:
    """Runs a stage in a new directory: what it took, its context, its records."""
    run_config = default.base_config()
    run_config.sampling.update(
        {"max_length": LIMIT, "batch_size": BATCH, "chunk_steps": 8, **bench.options}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder)
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        ctx = StageContext(
            name,
            ConfigDict(fields),
            run_config,
            path,
            artefacts.StageDirectory(path / name),
            {key: _Rows(rows) for key, rows in inputs.items()},
            mesh,
        )
        ctx.models = _Warm(bench, run_config, path, mesh)
        before = Took.now()
        stage.run(ctx)
        took = before.since()
        return took, ctx, list(artefacts.StageDirectory(path / name).records())


class _Rows:
    def __init__(self, rows: list[dict]):
        self.records = lambda: rows


def revise(bench: Bench) -> Workload:
    """The revise stage, 2 rounds of critique and revision on 48 prompts behind five worked
    examples; against the same loop over generate in batches of 16. Rows end at EOS, so both sample
    texts of their own lengths."""
    number, new, rounds = bench.count(48), bench.count(64), 2
    source = str(OFFICIAL) if OFFICIAL.is_dir() else "embedded"
    fields = default.revise(
        num_rounds=rounds, max_critique_tokens=new, max_revision_tokens=new, constitution=source
    )
    rows = [
        {
            "id": f"{n}/0",
            "prompt_id": str(n),
            "dialogue": dialogue_to_json(prompt.dialogue),
            "response": ANSWER.strip(),
        }
        for n, prompt in enumerate(bench.prompts[:number])
    ]

    # --- what both sides read
    constitution = load_constitution(source)
    header = sum(revise_stage.worked_examples(constitution.critique_examples[:5], True), ())
    answers, critiques = (
        [[ANSWER.strip()] * number],
        [],
    )  # a list a round: what is criticised in it, and ours' critiques
    sampled: dict[str, list[int]] = {"ours": [], "generate": []}

    # --- ours: the stage itself
    def ours() -> Took:
        took, ctx, records = _run(bench, revise_stage, "revise", fields, {"responses": rows})
        assert len(records) == number and all(len(record["rounds"]) == rounds for record in records)
        sampled["ours"].append(ctx.tokens["sampled"])
        if len(answers) == 1:
            records = {record["id"]: record for record in records}
            for i in range(rounds):
                answers.append([records[row["id"]]["rounds"][i]["revision"] for row in rows])
                critiques.append([records[row["id"]]["rounds"][i]["critique"] for row in rows])
        return took

    # --- the peer: the same loop over `generate`
    peer = bench.peer  # started before anything is timed

    def generate(parts: list[int]) -> Took:
        """Some turns of the stage's own loop, of some rows, with `generate` where it calls the
        engine. A turn follows the responses and critiques that ours follows, so that turns are
        independent."""
        before, count, cpu = Took.now(), 0, 0.0
        for part in parts:
            batch, number_of_turn = divmod(part, 2 * rounds)
            number_of_round, is_revision = divmod(number_of_turn, 2)
            prompts = []
            for n in range(number)[batch * size :][:size]:
                principle = revise_stage.draw_principles(
                    constitution.critique_principles, 16, rounds, 0, "revise", rows[n]["id"]
                )[number_of_round]
                asked = (
                    *header,
                    *bench.prompts[n].dialogue,
                    Message("assistant", answers[number_of_round][n]),
                    Message("critique_request", principle.critique_request),
                )
                if is_revision:
                    asked += (
                        Message("critique", critiques[number_of_round][n]),
                        Message("revision_request", principle.revision_request),
                    )
                prompts.append(
                    list(
                        sum(
                            bench.format.prompt(
                                asked, reply="revision" if is_revision else "critique"
                            ),
                            (),
                        )
                    )
                )
            batches = [
                {"prompts": prompts[i : i + PEER_BATCH], "new_tokens": new}
                for i in range(0, len(prompts), PEER_BATCH)
            ]
            answer = peer.ask(kind="generate", batches=batches, eos=list(bench.format.eos_ids))
            cpu += answer["cpu_seconds"]
            for row in answer["rows"]:
                ends = [place for place, token in enumerate(row) if token in bench.format.eos_ids]
                row = row[: ends[0]] if ends else row
                count += len(row) + bool(ends)
                bench.format.decode(row)
        took = before.since()
        sampled["generate"].append(round(count * units / len(parts)))
        return Took(took.wall, took.cpu + cpu)

    size = number // even_parts(number)
    units = 2 * rounds * even_parts(number)
    about = {"rows": number, "rounds": rounds, "max_tokens_a_turn": new, "tokens_sampled": sampled}
    return Workload({"ours": ours, "generate": Peers(generate, units)}, number, about)


def labels(bench: Bench) -> Workload:
    """The feedback stage on 64 comparisons, both orders, five-shot headers (4 in all); against a
    plain batched pass over every full text and option: of the same decoder, and of transformers.
    Both passes make logits of the options' tokens only."""
    number = bench.count(64)
    source = str(OFFICIAL) if OFFICIAL.is_dir() else "embedded"
    fields = default.feedback(num_headers=4, both_orders=True, constitution=source)
    pairs, _ = load_comparisons("embedded:helpful_comparisons", limit=number)
    rows = [
        {
            "id": pair.id,
            "prompt_id": pair.id,
            "dialogue": dialogue_to_json(pair.dialogue),
            "responses": [pair.chosen, pair.rejected],
        }
        for pair in pairs
    ]
    requests: list[ScoreRequest] = []
    logprobs: dict[str, list[float]] = {}

    # --- ours: the stage itself
    def ours() -> Took:
        took, ctx, records = _run(bench, feedback_stage, "feedback", fields, {"comparisons": rows})
        scored = {
            record["id"]: {entry["order"]: [entry["a"], entry["b"]] for entry in record["logprobs"]}
            for record in records
        }
        assert len(scored) == number
        requests[:] = ctx.models.asked
        names = (request.id.rpartition("#") for request in requests)
        logprobs["ours"] = [value for name, _, part in names for value in scored[name][part[:2]]]
        return took

    def texts(parts: list[int]) -> list[tuple[tuple[int, ...], int]]:
        """(text, tokens of its option) of these parts."""
        every = [
            (sum(request.segments, ()) + tuple(option), len(option))
            for request in requests
            for option in request.options
        ]
        size = len(every) // units
        return [text for part in parts for text in every[part * size :][:size]]

    def compare(name: str, parts: list[int], sums: list[float]) -> None:
        """Both sides have done the same work: the largest difference is kept."""
        size = len(logprobs["ours"]) // units
        mine = [value for part in parts for value in logprobs["ours"][part * size :][:size]]
        worst = max(abs(a - b) for a, b in zip(mine, sums, strict=True))
        differences[name] = max(worst, differences.get(name, 0.0))

    # --- plain forward passes of the same decoder
    @jax.jit
    def plain(params, tokens_BxT, mask_BxT, places_BxN):
        hidden = decoder.hidden_states(params, tokens_BxT, mask_BxT, bench.config)
        hidden = jnp.take_along_axis(hidden, places_BxN[..., None], axis=1)
        targets_BxN = jnp.take_along_axis(tokens_BxT, places_BxN + 1, axis=1)
        return losses.token_logprobs(hidden, decoder.unembedding(params, bench.config), targets_BxN)

    def plain_forward(parts: list[int], chosen=None) -> Took:
        chosen = chosen or texts(parts)
        before, sums = Took.now(), []
        for i in range(0, len(chosen), FORWARD_BATCH):
            batch = chosen[i : i + FORWARD_BATCH]
            longest = -(-max(len(text) for text, _ in batch) // 64) * 64
            tokens, lengths = (
                np.zeros((FORWARD_BATCH, longest), np.int32),
                np.ones(FORWARD_BATCH, np.int32),
            )
            places = np.zeros((FORWARD_BATCH, 4), np.int32)
            for row, (text, count) in enumerate(batch):
                tokens[row, : len(text)], lengths[row] = text, len(text)
                places[row, :count] = np.arange(len(text) - count - 1, len(text) - 1)
            logprobs = np.asarray(
                plain(bench.params, tokens, np.arange(longest) < lengths[:, None], places)
            )
            sums += [float(logprobs[row, :count].sum()) for row, (_, count) in enumerate(batch)]
        took = before.since()
        if parts:
            compare("plain forward", parts, sums)
        return took

    def compile_plain() -> None:
        """Every length that occurs, once."""
        seen = {-(-len(text[0]) // 64): text for text in texts(list(range(units)))}
        for text in seen.values():
            plain_forward([], [text])

    # --- forward passes of transformers
    def transformers_forward(parts: list[int]) -> Took:
        chosen = texts(parts)
        batches = [
            {
                "texts": [list(text) for text, _ in chosen[i : i + FORWARD_BATCH]],
                "counts": [count for _, count in chosen[i : i + FORWARD_BATCH]],
            }
            for i in range(0, len(chosen), FORWARD_BATCH)
        ]
        answer = bench.peer.ask(kind="forward", batches=batches)
        compare("transformers forward", parts, answer["rows"])
        return Took(answer["seconds"], answer["cpu_seconds"])

    units = max(count for count in range(1, LABEL_PARTS + 1) if number % count == 0)
    differences: dict[str, float] = {}
    about = {"comparisons": number, "labels": 2 * number, "largest_difference": differences}
    ways = {
        "ours": ours,
        "plain forward": Peers(plain_forward, units),
        "transformers forward": Peers(transformers_forward, units),
    }
    return Workload(ways, 2 * number, about, warm=compile_plain)
