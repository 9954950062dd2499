"""What Constitutional AI does to SmolLM2-135M-Instruct where the critic can criticise: a capable
language model, asked through files.

    python -m cai_jax.main --config=configs/results/student.py --workdir=runs/student

Critic, feedback model and judge answer in files (`batch:answers`, docs/endpoints.md): the command
writes the requests, leaves with exit code 3, and goes on when the answers are there.
`:answers=DIR` takes recorded answers instead: results/student/answers has those of the published
run, so that everything else of it can be repeated without such a model.

**Who sees what.** Prompts are the embedded ones and those of results/student/prompts, split by
prompt: what trains sees "train"; learning rates and numbers of steps are chosen on "dev", which
`evaluate_dev` rates and nobody reports; "heldout" is for what will be reported.

Whatever trains has three stages that differ in their draws alone (`sl_1`, `sl_2`, `sl_3`): a
stage's name is part of its random keys.
"""

import os

from configs import default

RESULTS = os.path.join("results", "student")
SETS = ("red_team", "helpful", "borderline")
SEEDS = (1, 2, 3)
ANSWER = 64  # tokens of an answer
CALM = {"temperature": 0.7}  # a model of this size rambles at 1
ADAPTERS = (16, 32.0, ("all",))


def source(name, split):
    """The prompts of a set ("borderline": they only look harmful) and split; the embedded ones have
    no split "dev"."""
    ours = f"{RESULTS}/prompts/{name}.jsonl[{split}]"
    embedded = name != "borderline" and split != "dev"
    return f"embedded:{name}[{split}]+{ours}" if embedded else ours


def get_config(arg=""):
    name, _, folder = arg.partition("=")
    if name not in ("", "answers"):
        raise ValueError(f"'{arg}': expected answers=DIR or nothing")
    config = default.base_config()
    critic = f"recorded:{folder}" if folder else "batch:answers"
    config.models.update({"critic": critic, "feedback": critic, "judge": critic})
    # A question is asked once; files of a size that a model reads at once.
    config.endpoints.all.update({"tier": "counted", "num_samples": 1, "lines_per_file": 80})
    config.sampling.max_length = 1024
    default.set_graph(config, graph())
    return config


def graph():
    """The stages in the order in which they run."""
    return {**supervised(), **evaluations(), "report": default.report()}


def supervised():
    """Section 3: the student's answers, the critic's critiques and revisions, SL-CAI."""

    def respond(*sources):
        joined = "+".join(sources)
        return default.respond(source=joined, split="", max_new_tokens=ANSWER, **CALM)

    steps = default.optimisation(1e-3, 16, 3, schedule="linear", warmup_steps=5)
    steps |= {"max_length": 384, "num_microbatches": 16, "save_every_steps": 20}
    steps["adapters"] = default.adapters(*ADAPTERS)
    return {
        "respond": respond(source("red_team", "train")),
        # Requests that only look harmful are answered by the student itself, too.
        "respond_helpful": respond(source("helpful", "train"), source("borderline", "train")),
        "revise": default.revise(
            model="critic",
            constitution=f"{RESULTS}/constitution.json",
            num_rounds=2,
            num_few_shot=0,
            max_critique_tokens=160,
            max_revision_tokens=120,
            **CALM,
        ),
        **{f"sl_{seed}": default.sl("revise", targets="final", **steps) for seed in SEEDS},
    }


def evaluations():
    """Blind ratings of the answers to prompts of the development split."""
    asked = {f"prompts_{name}": default.prompts(source(name, "dev"), split="") for name in SETS}
    models = {"SmolLM2": "helpful"} | {f"SL-CAI-{seed}": f"@sl_{seed}" for seed in SEEDS}
    evals = {
        "answer_statistics": {"kind": "answer_statistics"},
        "ratings": {"kind": "ratings", "judge": "judge"},
    }
    fields = {"evals": evals, "max_new_tokens": ANSWER, **CALM, **asked}
    return {"evaluate_dev": default.evaluate(models, **fields)}
