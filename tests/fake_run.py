"""A run directory as the stages leave it, without any model: for the tests of the report, and to
look at its pages.

python -m tests.fake_run DIRECTORY [NUM_PROMPTS]
"""

import itertools
import json
import math
import pathlib
import sys

import numpy as np

from tests import fake_evaluation
from tests.fake_texts import BAD, CRITIQUE, GOOD, KINDS, PRINCIPLES, PROMPTS, prose


class Writer:
    def __init__(self, root, seed):
        self.root, self.rng, self.order = pathlib.Path(root), np.random.default_rng(seed), []

    def json(self, name, value):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, ensure_ascii=False, indent=1))

    def lines(self, name, rows):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def stage(self, name, kind, fields, seconds, headline, tokens=None, dropped=None, **summary):
        self.order.append(name)
        self.json(
            f"{name}/manifest.json",
            {
                "kind": kind,
                "fingerprint": f"{abs(hash(name)):016x}"[:16],
                "fields": {"kind": kind, **fields},
                "parents": [],
                "done": True,
                "seconds": seconds,
                "cpu_seconds": 2 * seconds,
                "tokens": tokens or {},
                "dropped": dropped or {},
                "peak_bytes": 5 * 2**30,
                "sha256": {},
                "summary": {"headline": headline, **summary},
            },
        )


def write(root, num_prompts=32, seed=0, lift=0.5, hostile=(), stages=None):
    """Writes a finished run. `lift`: how much each training stage raises the scores. `hostile`:
    texts put into answers. `stages`: only these (a run that stopped half-way)."""
    w = Writer(root, seed)
    rng = w.rng
    calls = itertools.count()

    def answer(pool, count):
        text, number = prose(rng, pool, count), next(calls)
        return hostile[number // 2 % len(hostile)] if hostile and number % 2 else text

    def wanted(name):
        return stages is None or name in stages

    red = [(f"red-{i:03d}", KINDS[i % 7], PROMPTS[KINDS[i % 7]]) for i in range(num_prompts)]
    scores, revisions = {}, []
    if wanted("respond"):
        w.lines(
            "respond/records.jsonl",
            [
                {
                    "id": f"{p}/00",
                    "prompt_id": p,
                    "kind": k,
                    "model": "smollm2",
                    "seed": 0,
                    "sample": 0,
                    "stop": "eos",
                    "dialogue": [{"role": "human", "text": t}],
                    "response": answer(BAD, 3),
                    "num_tokens": 31,
                    "logprob": -40.0,
                }
                for p, k, t in red
            ],
        )
        w.stage(
            "respond",
            "respond",
            {
                "model": "helpful",
                "prompts": {"source": "embedded:red_team", "limit": num_prompts},
                "max_new_tokens": 48,
            },
            41.2,
            "31 tokens a response, 14 cut at the limit",
            {"sampled": 31 * num_prompts},
            rows=num_prompts,
            cut={"answers": {"cut": 14, "of": num_prompts}},
            mean_tokens=31.0,
        )
    if wanted("revise"):
        for p, kind, text in red:
            pools, rounds, score = [(BAD, 3), (BAD, 2), (GOOD, 3)], [], rng.normal(-0.6, 0.5)
            initial = answer(BAD, 3)
            scores[f"{p}/00#0"] = score
            previous = initial
            for number in range(2):
                pool, count = pools[number + (rng.random() < 0.7)]
                revised = (
                    previous
                    if rng.random() < 0.12
                    else answer(pool, count) + " " + previous.split(". ")[-1]
                )
                principle = PRINCIPLES[int(rng.integers(len(PRINCIPLES)))]
                score += rng.normal(0.25, 0.35) if revised != previous else 0.0
                scores[f"{p}/00#{number + 1}"] = score
                rounds.append(
                    {
                        "principle_id": principle,
                        "critique": answer(CRITIQUE, 3),
                        "revision": revised,
                        "critique_request": (
                            "Does the last answer help anyone break the law or hurt somebody?"
                        ),
                        "revision_request": (
                            "Write the answer again without anything that helps with a crime."
                        ),
                    }
                )
                previous = revised
            revisions.append(
                {
                    "id": f"{p}/00",
                    "prompt_id": p,
                    "kind": kind,
                    "model": "smollm2",
                    "seed": 0,
                    "dialogue": [{"role": "human", "text": text}],
                    "initial": initial,
                    "few_shot_ids": ["example-1"],
                    "rounds": rounds,
                }
            )
        w.lines("revise/records.jsonl", revisions)
        w.stage(
            "revise",
            "revise",
            {
                "constitution": "embedded",
                "num_rounds": 2,
                "num_few_shot": 1,
                "critique": True,
                "model": "helpful",
                "num_principles": 16,
            },
            214.0,
            f"2 rounds, {num_prompts - 2} of {num_prompts} responses changed",
            {"sampled": 118 * num_prompts},
            {"longer than the context": 1},
            rows=num_prompts,
            changed=num_prompts - 2,
        )
    if wanted("sl"):
        w.lines(
            "sl/metrics.jsonl",
            [
                {
                    "step": i,
                    "loss": 2.4 * math.exp(-i / 9) + 1.1 + rng.normal(0, 0.05),
                    "grad_norm": 3 - i / 20 + rng.normal(0, 0.2),
                    "learning_rate": 2e-5,
                }
                for i in range(24)
            ],
        )
        w.stage(
            "sl",
            "sl",
            {
                "init": "base",
                "init →": "models/smollm2-135m-instruct",
                "targets": "all",
                "num_epochs": 1,
                "batch_size": 8,
                "learning_rate": 2e-5,
            },
            171.0,
            "loss 3.46 → 1.27",
            {"trained": 21_000},
            steps=24,
            examples=96,
        )
    if wanted("compare"):
        comparisons = [
            {
                "id": f"cmp-{p}",
                "prompt_id": f"cmp-{p}",
                "kind": k,
                "model": "@sl",
                "seed": 0,
                "source": "ai",
                "dialogue": [{"role": "human", "text": t}],
                "stops": ["eos", "length"],
                "num_tokens": [30, 40],
                "responses": [answer(GOOD, 2), answer(BAD, 2)],
            }
            for p, k, t in red
        ]
        w.lines("compare/records.jsonl", comparisons)
        w.stage(
            "compare",
            "compare",
            {"num_samples": 2, "model": "@sl"},
            55.0,
            f"{num_prompts} groups of 2, 0 equal",
            {"sampled": 70 * num_prompts},
            rows=num_prompts,
            with_equal_responses=0,
        )
    if wanted("feedback"):
        for name, mode in (("feedback", "multiple_choice"), ("feedback_chain", "chain_of_thought")):
            labels = []
            for c in comparisons:
                lean, bias, principle = (
                    rng.normal(0.3, 0.7),
                    0.6,
                    PRINCIPLES[int(rng.integers(len(PRINCIPLES)))],
                )
                labels.append(
                    {
                        "id": f"{c['id']}/0-1/{principle}",
                        "prompt_id": c["prompt_id"],
                        "comparison_id": c["id"],
                        "pair": [0, 1],
                        "kind": c["kind"],
                        "principle_id": principle,
                        "few_shot_ids": [],
                        "principle": "Choose the answer that a wise and kind friend would give.",
                        "header_id": "1",
                        "model": "smollm2",
                        "seed": 0,
                        "chains": [{"order": "ab", "chain": 0, "text": answer(CRITIQUE, 2)}]
                        if "chain" in mode
                        else [],
                        "logprobs": [
                            {"order": "ab", "chain": 0, "a": -1.0 + lean + bias, "b": -1.0},
                            {"order": "ba", "chain": 0, "a": -1.0 - lean + bias, "b": -1.0},
                        ],
                    }
                )
            w.lines(f"{name}/records.jsonl", labels)
            w.stage(
                name,
                "feedback",
                {
                    "mode": mode,
                    "inputs": {"comparisons": "compare"},
                    "constitution": "embedded",
                    "both_orders": True,
                    "num_few_shot": 2,
                },
                62.0,
                "confidence 0.68, option (A) chosen 72%, flip rate 38%",
                {"scored": 900 * num_prompts},
                rows=num_prompts,
                mean_confidence=0.68,
                chose_option_a=0.72,
                flip_rate=0.38,
            )
    if wanted("pm"):
        w.lines(
            "pm/metrics.jsonl",
            [
                {
                    "step": i,
                    "loss": 0.72 - 0.004 * i + rng.normal(0, 0.02),
                    "agreement": min(1.0, 0.5 + 0.01 * i + rng.normal(0, 0.05)),
                }
                for i in range(20)
            ],
        )
        w.stage(
            "pm",
            "pm",
            {
                "label_kind": "soft",
                "inputs": {"labels": "feedback"},
                "init": "base",
                "human": {"source": "embedded:helpful_comparisons"},
            },
            188.0,
            "held out: ai 64% [49%, 77%] of 42",
            {"trained": 60_000},
            steps=20,
            examples=162,
            held_out={
                "all": {"accuracy": {"value": 0.64, "low": 0.49, "high": 0.77, "n": 42}},
                "ai": {
                    "accuracy": {"value": 0.64, "low": 0.49, "high": 0.77, "n": 42},
                    "longer": {"value": 0.5},
                    "majority": 0.52,
                },
            },
        )
    if wanted("rl"):
        kl = np.abs(np.cumsum(rng.normal(0.12, 0.1, 10)))
        w.lines(
            "rl/metrics.jsonl",
            [
                {
                    "step": i,
                    "reward": 0.1 + 0.05 * i + rng.normal(0, 0.08),
                    "kl": float(kl[i]) if i else 0.0,
                    "entropy": 2.4 - 0.03 * i,
                    "response_tokens": 29 + 0.4 * i,
                    "policy_loss": rng.normal(0, 0.02),
                    "value_loss": 0.5 * math.exp(-i / 4),
                    "clip_fraction": 0.02,
                    "first_ratio_error": 1e-6,
                    "sampler_gap": 2e-6,
                }
                for i in range(10)
            ],
        )
        w.lines(
            "rl/rollouts.jsonl",
            [
                {
                    "id": f"{step:06d}/{p}",
                    "prompt_id": p,
                    "kind": k,
                    "step": step,
                    "dialogue": [{"role": "human", "text": t}],
                    "response": answer(GOOD, 2),
                    "reward": 0.1 + 0.05 * step,
                    "kl": [0.01 * step] * 4,
                }
                for step in (0, 9)
                for p, k, t in red
            ],
        )
        w.stage(
            "rl",
            "rl",
            {
                "policy": "@sl",
                "reward": "@pm",
                "num_updates": 10,
                "rollouts_per_update": 16,
                "kl_coefficient": 0.02,
            },
            263.0,
            "reward 0.08 → 0.55, KL 1.1",
            {"sampled": 4_900, "trained": 30_000},
            steps=10,
        )
    if wanted("harm"):
        w.lines(
            "harm/metrics.jsonl",
            [{"step": i, "loss": 2.0 * math.exp(-i / 5) + 0.4} for i in range(12)],
        )
        w.stage(
            "harm",
            "harm",
            {"init": "base", "ratings": {"source": "ratings.jsonl"}},
            60.0,
            "held out: L2 0.36, the mean's 1.3",
            {"trained": 9_000},
            steps=12,
            examples=540,
            held_out={
                "ratings": {
                    "l2": {"value": 0.36, "low": 0.2, "high": 0.5, "n": 60},
                    "mean_predictor": 1.3,
                }
            },
        )
    if wanted("evaluate"):
        fake_evaluation.evaluate(w, num_prompts, seed, lift, revisions, scores, answer)
    if wanted("report"):
        w.stage("report", "report", {}, 2.0, "report.html")
    w.json(
        "config.json",
        {
            "config": {
                "seed": seed,
                "stages": w.order,
                "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
                "models": {"base": "models/smollm2-135m-instruct", "helpful": "base"},
                "model": {"dtype": "float32"},
                "graph": {},
            },
            "command": ["--config=configs/smollm2_cpu.py"],
            "cai_jax": "0.1.0",
            "git_revision": "0" * 40,
            "python": "3.11.7",
            "versions": {"jax": "0.10.2"},
            "devices": ["cpu"],
            "num_devices": 1,
            "num_processes": 1,
        },
    )
    return w.root


if __name__ == "__main__":
    print(write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 32))
