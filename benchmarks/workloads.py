"""The workloads of `benchmarks.sampling`: each returns its ways of doing the same work, as functions that time themselves."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from benchmarks.peer import Peer
from cai_jax import losses, seeds, sharding
from cai_jax.constitution.loader import load_constitution
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import load_prompts
from cai_jax.io import artefacts
from cai_jax.models import decoder, hf
from cai_jax.sampling.engine import Engine, EngineOptions
from cai_jax.stages import revise as revise_stage
from cai_jax.stages.context import LoadedModel, StageContext
from cai_jax.structs import Message, SampleRequest, SamplingParams, ScoreRequest, dialogue_to_json
from configs import default

PEER_BATCH = 16
OFFICIAL = pathlib.Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "official" / "prompts"
ANSWER = "Sure. The first thing that you need is a plan, and then a few simple tools. " * 2
LIMIT = 2048 + 1024  # of the cache: a header of 2,000 tokens, a dialogue, an answer


class Took(NamedTuple):
    """Seconds of the clock, and of processors (all threads of whoever did the work)."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Took:
        return Took(time.perf_counter(), time.process_time())

    def since(self) -> Took:
        return Took(time.perf_counter() - self.wall, time.process_time() - self.cpu)


class Workload(NamedTuple):
    """ways: name → function that does all the work once and says what it took; units: tokens, labels or prompts done;
    about: what else is to be known of it; compiled: the ways that compile, and so are run once before they are measured."""

    ways: dict[str, Callable[[], Took]]
    units: int
    about: dict
    compiled: tuple[str, ...] = ("ours",)


class Bench:
    """The model twice, and the texts."""

    def __init__(self, model: str, scale: float, dtype: str, options: dict | None = None):
        self.directory, self.dtype, self.options = model, dtype, options or {}
        self.config, self.params = hf.load_hf(model, dtype=jnp.dtype(dtype))
        self.format = load_format(model)
        self.scale, self._peer = scale, None
        self.prompts = load_prompts("embedded:red_team")
        self.engines: dict[int, Engine] = {}

    @property
    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = Peer(self.directory, self.dtype)
        return self._peer

    def close(self) -> dict:
        found = {}
        if self._peer is not None:
            found["generate_peak_bytes"] = self._peer.ask(kind="ready")["peak_bytes"]
            self._peer.close()
        return found

    def count(self, number: int) -> int:
        return max(round(number * self.scale), 2)

    def constitution(self):
        return load_constitution(str(OFFICIAL) if OFFICIAL.is_dir() else "embedded")

    def engine(self, batch_size: int) -> Engine:
        if batch_size not in self.engines:
            options = EngineOptions(batch_size=batch_size, **{"chunk_steps": 8, "max_length": LIMIT, **self.options})
            self.engines[batch_size] = Engine(self.params, self.config, self.format, options=options)
            self.engines[batch_size].eos_ids = ()  # every row runs to its length, ours and theirs
        return self.engines[batch_size]

    def ours(self, segments, new_tokens, batch_size, lengths=None, forget=True) -> Took:
        """One completion of every prompt; header and prompts are prefilled anew if `forget`."""
        engine = self.engine(batch_size)
        if forget:
            engine.update(self.params)
            jax.block_until_ready(engine.weights)
        lengths = lengths or [new_tokens] * len(segments)
        requests = [SampleRequest(str(n), s, seeds.row_key(0, n), lengths[n]) for n, s in enumerate(segments)]
        before = Took.now()
        tokens = sum(len(done.tokens) for done in engine.generate(requests, SamplingParams(new_tokens)))
        took = before.since()
        assert tokens == sum(lengths)
        return took

    def theirs(self, segments, new_tokens, header=None, lengths=None) -> Took:
        rows = [list(sum(s[1:] if header else s, ())) for s in segments]
        lengths = lengths or [new_tokens] * len(rows)
        batches = [
            {"prompts": rows[i : i + PEER_BATCH], "new_tokens": max(lengths[i : i + PEER_BATCH])}
            for i in range(0, len(rows), PEER_BATCH)
        ]
        answer = self.peer.ask(kind="generate", batches=batches, header=header and list(header))
        return Took(answer["seconds"], answer["cpu_seconds"])


def decode(bench: Bench) -> Workload:
    """Batch 16, 128 new tokens."""
    new = bench.count(128)
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:16]]
    ways = {"ours": lambda: bench.ours(segments, new, 16), "generate": lambda: bench.theirs(segments, new)}
    return Workload(ways, 16 * new, {"new_tokens": new, "rows": 16})


def latency(bench: Bench) -> Workload:
    """Batch 1: seconds a token."""
    new = bench.count(64)
    segments = [bench.format.prompt(bench.prompts[0].dialogue)]
    ways = {"ours": lambda: bench.ours(segments, new, 1), "generate": lambda: bench.theirs(segments, new)}
    return Workload(ways, new, {"new_tokens": new})


def critique_segments(bench: Bench, number: int) -> list:
    """Five worked examples, a dialogue, a critique request."""
    constitution = bench.constitution()
    header = revise_stage.few_shot_messages(constitution.critique_examples[:5], True)
    result = []
    for row, prompt in enumerate(bench.prompts[:number]):
        request = constitution.critique_principles[row % len(constitution.critique_principles)].critique_request
        turns = (*prompt.dialogue, Message("assistant", ANSWER), Message("critique_request", request))
        result.append(bench.format.prompt(header + turns, reply="critique", shared=len(header)))
    assert len({segments[0] for segments in result}) == 1
    return result


def first_token(bench: Bench) -> Workload:
    """From the request to its first token, for one critique prompt: with the header new, and with the header kept."""
    segments = critique_segments(bench, 2)

    def kept():
        bench.ours(segments[:1], 1, 1)  # another dialogue behind the same header
        return bench.ours(segments[1:], 1, 1, forget=False)

    ways = {
        "ours": lambda: bench.ours(segments[1:], 1, 1),
        "ours, header kept": kept,
        "generate": lambda: bench.theirs(segments[1:], 1),
    }
    return Workload(ways, 1, {"header_tokens": len(segments[1][0]), "own_tokens": sum(map(len, segments[1][1:]))},
                    ("ours", "ours, header kept"))  # fmt: skip


def critique(bench: Bench) -> Workload:
    """Few-shot header + dialogue + request, 32 dialogues, 64 new tokens; generate at batch 16, and with its prefix cache
    made by hand."""
    new, number = bench.count(64), bench.count(32)
    segments = critique_segments(bench, number)
    ways = {
        "ours": lambda: bench.ours(segments, new, min(32, number)),
        "generate": lambda: bench.theirs(segments, new),
        "generate, prefix cache by hand": lambda: bench.theirs(segments, new, header=segments[0][0]),
    }
    return Workload(ways, number * new, {"new_tokens": new, "rows": number, "header_tokens": len(segments[0][0])})


def skewed(bench: Bench) -> Workload:
    """96 prompts, geometric lengths of mean 40, at most 256; generate and our own static batches run each batch to its
    longest row."""
    number = bench.count(96)
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 40, number), 256).tolist()
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:number]]

    def static():
        parts = [bench.ours(segments[i : i + 16], max(lengths[i : i + 16]), 16, lengths[i : i + 16])
                 for i in range(0, number, 16)]  # fmt: skip
        return Took(*map(sum, zip(*parts, strict=True)))

    ways = {
        "ours": lambda: bench.ours(segments, 256, 16, lengths),
        "ours, static batches": static,
        "generate": lambda: bench.theirs(segments, 256, lengths=lengths),
    }
    return Workload(ways, sum(lengths), {"rows": number, "longest": max(lengths)}, ("ours", "ours, static batches"))


class _Warm(StageContext):
    """A context whose model is loaded already: what is measured is the stage."""

    bench: Bench

    def load_model(self, reference, kind="policy", format="auto"):
        return LoadedModel("smollm2", self.bench.config, self.bench.params, self.bench.format)


def revise(bench: Bench) -> Workload:
    """The revise stage, 2 rounds of critique and revision on 48 prompts behind five worked examples, records written;
    against the same loop over generate in batches of 16. Rows end at EOS, so both sample texts of their own lengths."""
    number, new, rounds = bench.count(48), 64, 2
    source = str(OFFICIAL) if OFFICIAL.is_dir() else "embedded"
    fields = ConfigDict(default.revise(num_rounds=rounds, max_critique_tokens=new, max_revision_tokens=new, constitution=source))
    run_config = default.base_config()
    run_config.sampling.update({"max_length": LIMIT, "batch_size": 16, "chunk_steps": 8, **bench.options})
    rows = [{"id": f"{n}/0", "prompt_id": str(n), "dialogue": dialogue_to_json(prompt.dialogue), "response": ANSWER.strip()}
            for n, prompt in enumerate(bench.prompts[:number])]  # fmt: skip
    sampled: dict[str, list[int]] = {"ours": [], "generate": []}

    class Responses:
        records = staticmethod(lambda: rows)

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            path = epath.Path(folder)
            ctx = _Warm("revise", fields, run_config, path, artefacts.StageDirectory(path / "revise"), {"responses": Responses},
                        sharding.make_mesh({"data": 1}, jax.devices()[:1]))  # fmt: skip
            ctx.bench = bench
            before = Took.now()
            assert revise_stage.run(ctx)["rows"] == number
            sampled["ours"].append(ctx.tokens["sampled"])
            return before.since()

    def generate():
        """The stage's own loop, with `generate` where it calls the engine."""
        constitution = load_constitution(source)
        header = revise_stage.few_shot_messages(constitution.critique_examples[:5], True)
        principles = {row["id"]: revise_stage.draw_principles(constitution.critique_principles, 16, rounds, 0, "revise", row["id"])
                      for row in rows}  # fmt: skip
        before, count, cpu = Took.now(), 0, 0.0

        def turn(role, messages):
            nonlocal count, cpu
            prompts = [list(sum(bench.format.prompt(header + each, reply=role), ())) for each in messages]
            batches = [{"prompts": prompts[i : i + PEER_BATCH], "new_tokens": new} for i in range(0, number, PEER_BATCH)]
            texts = []
            answer = bench.peer.ask(kind="generate", batches=batches, eos=list(bench.format.eos_ids))
            cpu += answer["cpu_seconds"]
            for row in answer["rows"]:
                ends = [place for place, token in enumerate(row) if token in bench.format.eos_ids]
                row = row[: ends[0]] if ends else row
                count += len(row) + bool(ends)
                texts.append(bench.format.decode(row).strip())
            return texts

        answers = [row["response"] for row in rows]
        for number_of_round in range(rounds):
            drawn = [principles[row["id"]][number_of_round] for row in rows]
            asked = [(*prompt.dialogue, Message("assistant", answer), Message("critique_request", principle.critique_request))
                     for prompt, answer, principle in zip(bench.prompts, answers, drawn, strict=False)]  # fmt: skip
            critiques = turn("critique", asked)
            asked = [(*messages, Message("critique", text), Message("revision_request", principle.revision_request))
                     for messages, text, principle in zip(asked, critiques, drawn, strict=True)]  # fmt: skip
            answers = turn("revision", asked)
        sampled["generate"].append(count)
        took = before.since()
        return Took(took.wall, took.cpu + cpu)

    about = {"rows": number, "rounds": rounds, "max_tokens_a_turn": new, "tokens_sampled": sampled}
    return Workload({"ours": ours, "generate": generate}, number, about)


def labels(bench: Bench) -> Workload:
    """Feedback labels: comparisons in both orders behind one of four five-example headers, against a plain batched forward
    pass of every full text and option with the same decoder."""
    number = bench.count(64)
    question = "\n\nWhich of these answers is less harmful?\n\nOptions:\n (A) {}\n (B) {}\n\nThe answer is:"
    answers = ["I cannot help with that, but here is why it worries me. " * 3, "Sure, this is what you could do. " * 4]
    encode = bench.format.tokenizer.encode
    headers = [tuple(sum((encode(f"Example {h}.{i}: " + question.format(*answers) + " (A)\n\n") for i in range(5)), ()))
               for h in range(4)]  # fmt: skip
    options = (tuple(encode(" (A)")), tuple(encode(" (B)")))
    requests = []
    for n in range(number):
        for order in (1, -1):
            text = bench.prompts[n].dialogue[0].text + question.format(*answers[::order])
            requests.append(ScoreRequest(f"{n}/{order}", (headers[n % 4], tuple(encode(text))), options))
    engine = bench.engine(16)

    def ours():
        engine.update(bench.params)
        jax.block_until_ready(engine.weights)
        before = Took.now()
        assert len(list(engine.score(requests))) == len(requests)
        return before.since()

    @jax.jit
    def forward(params, tokens, mask):
        hidden = decoder.hidden_states(params, tokens, mask, bench.config)
        return losses.next_token_logprobs(hidden, decoder.unembedding(params, bench.config), tokens)

    texts = [sum(request.segments, ()) + option for request in requests for option in request.options]
    longest = -(-max(map(len, texts)) // 64) * 64

    def plain(texts=texts):
        before = Took.now()
        for i in range(0, len(texts), 4):
            batch, lengths = np.zeros((4, longest), np.int32), np.ones(4, np.int32)
            for row, text in enumerate(texts[i : i + 4]):
                batch[row, : len(text)], lengths[row] = text, len(text)
            np.asarray(forward(bench.params, batch, np.arange(longest) < lengths[:, None]))
        return before.since()

    plain(texts[:4])  # compiles
    about = {"comparisons": number, "header_tokens": len(headers[0]), "own_tokens": len(requests[0].segments[1])}
    return Workload({"ours": ours, "plain forward": plain}, len(requests), about)


WORKLOADS = {"decode": decode, "latency": latency, "first_token": first_token, "labels": labels, "skewed": skewed,
             "critique": critique, "revise": revise}  # fmt: skip
