"""Constitutional AI as published (Bai et al. 2022, arXiv 2212.08073), in the sizes of the paper.

    python -m cai_jax.main --config=configs/default.py --workdir=runs/paper

Every field, its default, its range and what it means is declared in `cai_jax/configuration`:
`stages.py` has the kinds of stages, `run.py` the fields of the run (`python -m cai_jax.main --help
rl` prints those of rl). Here are functions that make one stage each: what is not given has the
table's default, which is the paper's value. Other configs start from these and shrink them.
"""

from ml_collections import ConfigDict

from cai_jax.configuration import evaluations, fields, groups, run
from cai_jax.configuration.stages import STAGES


def group(table, *values, **given):
    """The fields of a group: those that are given, in the table's order or by name."""
    return fields.build(table, dict(zip(table, values, strict=False)) | given)


def prompts(*values, **given):
    """Which prompts: source, split, offset, limit, … of `groups.PROMPTS`; ("", "") for none."""
    return group(groups.PROMPTS, *values, **given)


def human_pairs(*values, **given):
    """Which of people's comparisons: fields of `groups.COMPARISONS`, as of `prompts`."""
    return group(groups.COMPARISONS, *values, **given)


def optimisation(learning_rate, batch_size, num_epochs=1, **given):
    """Adam's fields for sl, pm and harm: those of `groups.OPTIMISATION`."""
    given |= {"learning_rate": learning_rate, "batch_size": batch_size, "num_epochs": num_epochs}
    return group(groups.OPTIMISATION, **given)


def adapters(*values, **given):
    """Low-rank adapters: rank, alpha, targets and base_dtype of `groups.ADAPTERS`."""
    return group(groups.ADAPTERS, *values, **given)


def absolute_harm(model, num_samples=None, **given):
    """Expected harm of every model's answers: fields of `evaluations.EVALS["harm"]`, and of its
    prompts."""
    table = evaluations.EVALS["harm"]
    own = {name: given.pop(name) for name in table if name in given}
    if num_samples is not None:
        own["num_samples"] = num_samples
    return group(table, model, prompts=given, **own)


def stage(kind, /, **given):
    """A stage of a kind: the fields and inputs that are given, the others at their defaults. None
    as an input means its default."""
    inputs = {name: given.pop(name) for name in STAGES[kind].inputs if name in given}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    inputs |= given.pop("inputs", {})
    return fields.build_kind(STAGES, {"kind": kind, "inputs": inputs, **given}, kind)


def _with_prompts(kind, given):
    """A stage whose prompts' fields (source, limit, …) are given next to the others."""
    own = {name: given.pop(name) for name in groups.PROMPTS if name in given}
    return stage(kind, prompts=given.pop("prompts", own), **given)


def respond(**given):
    """Answers to prompts (section 3.1)."""
    return _with_prompts("respond", given)


def revise(responses=None, **given):
    """Critique and revision rounds (section 3.1)."""
    return stage("revise", responses=responses, **given)


def sl(revisions=None, helpful=None, **given):
    """Supervised finetuning on revisions → SL-CAI (section 3.2)."""
    return stage("sl", revisions=revisions, helpful=helpful, **given)


def compare(**given):
    """Groups of answers to the same prompt (section 4.1): pairs in the paper."""
    return _with_prompts("compare", given)


def feedback(comparisons=None, **given):
    """AI feedback: the multiple choice, or a chain of thought before it (section 4.1)."""
    return stage("feedback", comparisons=comparisons, **given)


def human(**pair_fields):
    """People's comparisons as an input of `feedback`."""
    return stage("human", human=pair_fields)


def pm(comparisons=None, labels=None, **given):
    """Preference model on AI labels mixed with human helpfulness comparisons (section 4.1)."""
    return stage("pm", comparisons=comparisons, labels=labels, **given)


def dpo(comparisons=None, labels=None, revisions=None, **given):
    """A policy from comparisons or revisions, without a preference model."""
    return stage("dpo", comparisons=comparisons, labels=labels, revisions=revisions, **given)


def rl(**given):
    """PPO against the preference model (section 4.1)."""
    return stage("rl", **given)


def best_of(responses, reward="@pm"):
    """Of the answers of a `respond` stage the one with the highest score, in place of a policy."""
    return stage("best_of", responses=responses, reward=reward)


def harm(**given):
    """A regressor of absolute harmfulness (section 4.5). Not among the stages of `get_config`: the
    ratings are a file of their own."""
    return stage("harm", **given)


def evaluate(models, revisions=None, harm=None, **given):
    """Answers of several models to held-out prompts, and what every kind of evaluation measures of
    them (section 4.3). What is no field of the stage is given to all evaluations that have a field
    of that name; `harm` has the fields of that evaluation."""
    evals = {kind: {"kind": kind} for kind in evaluations.EVALS}
    evals["harm"] |= harm or {}
    for name in [name for name in given if not fields.entry(STAGES["evaluate"].table, name)]:
        owners = [kind for kind, table in evaluations.EVALS.items() if name in table]
        evals |= {kind: evals[kind] | {name: given[name]} for kind in owners}
        given = {key: value for key, value in given.items() if key != name or not owners}
    return stage("evaluate", models=models, revisions=revisions, **{"evals": evals, **given})


def report():
    """The report of all that ran before it."""
    return stage("report")


def base_config():
    """What every config shares, without a graph."""
    return ConfigDict(fields.build(run.RUN))


def set_graph(config, graph, without=()):
    """Gives `config` the stages of `graph`, to run in its order all but those of `without`."""
    config.graph = graph
    config.stages = tuple(name for name in graph if name not in without)


def get_config():
    config = base_config()
    models = {"initial": "helpful", "sl": "@sl", "rl": "@rl"}
    graph = {
        "respond": respond(),
        "respond_helpful": respond(source="topic:helpful", num_samples=2),
        "revise": revise(),
        "sl": sl(),
        "compare": compare(),
        "feedback": feedback(),
        "pm": pm(),
        "rl": rl(),
        # To use it: add it to the stages, and evaluate.evals.harm.model=@harm.
        "harm": harm(),
        "evaluate": evaluate(models, "revise"),
        "report": report(),
    }
    set_graph(config, graph, without=("harm",))
    return config
