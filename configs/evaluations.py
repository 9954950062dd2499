"""The paper's published multiple-choice files, answered by one model: 438 HHH, HarmfulVsEthical,
HarmfulnessClassification.

    python -m cai_jax.main --config=configs/evaluations.py --workdir=runs/evaluations
    python -m cai_jax.main --config=configs/evaluations.py:data=DIR,shots=2 --workdir=runs/other
    --config.models.feedback=MODEL

MODEL is a directory or a hub name. `data` (data): where the files eval_NAME.jsonl.gz are,
evals/NAME.jsonl of github.com/anthropics/ConstitutionalHarmlessnessPaper; `python -m
cai_jax.data.published DIR` downloads them. `shots`: worked examples of the few-shot mode;
`--config.graph.evaluate.evals.multiple_choice.num_chains=5` asks for chains of thought as well,
which takes much longer.
Accuracies with intervals and baselines are in RUN/evaluate/metrics.json and the report, every
answer with its log-probabilities in RUN/evaluate/choices.jsonl. `python -m benchmarks.evaluations
RUN` compares those with transformers, row by row.
"""

from configs import default

SETS = ("438HHHEvaluations", "HarmfulVsEthical", "HarmfulnessClassification")


def get_config(arg=""):
    given = dict(part.partition("=")[::2] for part in (arg or "").split(",") if part)
    if unknown := set(given) - {"data", "shots"}:
        raise ValueError(f"'{', '.join(sorted(unknown))}': expected data=… and shots=…")
    if not given.get("shots", "5").isdigit():
        raise ValueError(f"shots={given['shots']}: expected a number")
    data, nothing = given.get("data", "data"), default.prompts("", "")
    config = default.base_config()
    graph = {
        "evaluate": default.evaluate(
            {},
            reward="",
            choices="+".join(f"{data}/eval_{name}.jsonl.gz" for name in SETS),
            num_few_shot=int(given.get("shots", 5)),
            prompts_red_team=nothing,
            prompts_helpful=nothing,
            comparisons=nothing,
        ),
        "report": default.report(),
    }
    config.sampling.max_length = 4096  # five worked examples before a long question
    default.set_graph(config, graph)
    return config
