"""The fields of a run: everything of a config but the stages' own (`stages.py`)."""

from __future__ import annotations

import datetime

from cai_jax.configuration.endpoints import ENDPOINTS
from cai_jax.configuration.fields import (
    Field,
    Named,
    Range,
    Rule,
    Table,
    choice,
    count,
    flag,
    model,
    positive,
    text,
    word,
)
from cai_jax.configuration.stages import STAGES

NO_FLOAT16 = (
    "float16 has too few exponents for gradients and scores without loss scaling, which is not "
    "done here: take bfloat16"
)
DEVICES = Range(-1)


def _is_date(value: str) -> bool:
    try:
        return not value or bool(datetime.date.fromisoformat(value))
    except ValueError:
        return False


# What the run is about: stages refer to it as topic:prompts and so on. With a topic of your own set
# prompts, constitution (with worked examples) and the words; what is left at its default is named
# at the start.
TOPIC: Table = {
    "prompts": text("embedded:red_team", "requests that the constitution is about"),
    "helpful": text("embedded:helpful", "ordinary requests, to keep helpfulness; '' for none"),
    "comparisons": text("embedded:helpful_comparisons", "people's, for the preference model"),
    # Held out for evaluation. "": the split "heldout" of embedded data; of other sources two tenths
    # by a hash of the first human turn, and the stages train on the other eight tenths. Of a file
    # named here all rows are held out; of one that is trained on, too, its split "heldout".
    "heldout_prompts": text("", "held out for evaluation; '': two tenths of prompts"),
    "heldout_helpful": text("", "held out for evaluation; '': two tenths of helpful"),
    "heldout_comparisons": text("", "held out for evaluation; '': two tenths of comparisons"),
    "constitution": text("embedded", "or the folder of the paper's files, or a JSON file of ours"),
    "choices": text("embedded:hhh", "multiple-choice comparisons in evaluate"),
    "question": text("", "what the judge is asked on two answers; '': which does less harm"),
    "name": text("red-team", 'in the report: "red-team prompts"'),
    "quality": text("harmless", 'in the report: "more harmless", "harmlessness"'),
}

RUN: Table = {
    "seed": Field(0, int, Range(0, 2**63 - 1), "of everything random"),
    "stages": Field(("",), tuple, None, "names of the stages to run, in order"),
    # redo: stages whose fields or inputs changed are moved aside and run again; restore: those that
    # were moved aside under just these fields are moved back.
    "on_change": choice("stop", ("stop", "redo", "restore"), "where the fields of a run changed"),
    "date": Field(
        "",
        str,
        Rule(_is_date, "YYYY-MM-DD or nothing"),
        "the day that chat templates write where they write one; '': that on which the run began",
    ),
    # Roles: directories, hub names (HuggingFaceTB/SmolLM2-135M-Instruct), gs:// paths, @stage,
    # openai:URL#MODEL, or other roles.
    "models": Named(
        {
            "base": "models/smollm2-135m-instruct",  # is finetuned; in the paper a pretrained LM
            "helpful": "base",  # answers, thinks; in the paper helpful RLHF
            "critic": "helpful",  # criticises and revises
            "feedback": "base",  # judges pairs; in the paper a pretrained LM
            "judge": "base",  # kept for evaluation
        },
        model("", "a model by its role", "any"),
        "role → model: base (finetuned), helpful (answers), critic, feedback and judge",
    ),
    # Of models behind servers. "all" is for every model, a role's name (critic, judge, …) for its.
    "endpoints": Named(
        {"all": {"kind": "openai"}}, ENDPOINTS, "of openai:URL#MODEL and batch:DIR#MODEL"
    ),
    "max_cost": positive(None, "of all requests to servers in this run; empty: no limit"),
    "record": flag(False, "keep what models of this process answer, too, for recorded:RUN"),
    "topic": TOPIC,
    "mesh": {
        "data": Field(-1, int, DEVICES, "devices along the axis; -1 takes what is left"),
        "fsdp": Field(1, int, DEVICES, "devices along the axis; -1 takes what is left"),
        "tensor": Field(1, int, DEVICES, "devices along the axis; -1 takes what is left"),
    },
    "model": {
        "dtype": choice(
            "float32", ("float32", "bfloat16"), "of weights and activations", float16=NO_FLOAT16
        ),
        # No thoughts, as in the paper (Qwen3 and SmolLM3 know the argument, others ignore it). With
        # True, thoughts are sampled, counted and left out of every answer.
        "template_args": Named(
            {"enable_thinking": False},
            Field(None, object, None, "an argument"),
            "what every chat template is given",
        ),
        # Unrolled programs take ten times as long to compile, and run no faster.
        "scan_layers": flag(True, "lax.scan over layers"),
        "remat": choice("none", ("none", "dots", "full"), "what the backward pass recomputes"),
        "logprob_chunk": count(128, "positions whose logits exist at a time"),
    },
    "sampling": {
        "batch_size": count(16, "sequences at a time; 0: the sampler chooses", low=0),
        "chunk_steps": count(16, "tokens a device call"),
        # Memory is taken as prompts need it. Five worked examples of the paper have 2,000 tokens;
        # of what is still longer, worked examples are left out, and prompts that are too long
        # without any (both are counted).
        "max_length": count(4096, "tokens of prompt and answer; 0: the model's positions", low=0),
        "int8": flag(False, "weights in 8 bits (in rl a judge's only); benchmarks/README.md"),
        "flash": flag(True, "splash attention (TPU) or cuDNN's (GPU, 16 bits) on prompts"),
    },
    # STAGE/profile/, for TensorBoard's profiler.
    "profile_steps": word("", "training steps to trace, such as 10-12 or sl:10-12"),
    # TensorBoard and JSON Lines are always written.
    "logging": {"wandb": word("", "a Weights & Biases project")},
    "graph": Named({}, STAGES, "name → the fields of a stage of some kind"),
}
