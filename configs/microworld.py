"""Constitutional AI in the microworld: a small language with an exact oracle, on two cores in
minutes.

The base model (configs/models/microworld, 0.9M parameters, made by `python -m
cai_jax.microworld.pretrain`) answers every request, also harmful ones, and can criticise, revise
and judge. The pipeline is the one of every other config. Afterwards `python -m
cai_jax.microworld.measure RUN …` says by the oracle what the answers to held-out requests are.
"""

import pathlib

import cai_jax
from configs import default

HERE = pathlib.Path(__file__).resolve().parent
DATA = pathlib.Path(cai_jax.__file__).resolve().parent / "microworld" / "data"
BASE = str(HERE / "models" / "microworld")
RED_TEAM, HELPFUL = str(DATA / "red_team.jsonl"), str(DATA / "helpful.jsonl")
CONSTITUTION = str(DATA / "constitution.json")
NUM_RED_TEAM, NUM_HELPFUL = (
    480,
    400,
)  # prompts of the supervised stage; comparisons are about the next ones


def heldout(name, limit=None):
    """Prompts on acts that no training document or prompt of any stage has."""
    return default.prompts(str(DATA / f"{name}.jsonl"), "heldout", limit=limit)


def base_config():
    """The base model in every role, and sizes for it."""
    config = default.base_config()
    config.models.base = BASE
    config.sampling.update({"batch_size": 64, "chunk_steps": 8, "max_length": 320})
    return config


# Three sizes of base model (Figures 4 and 7): name → role of config.models.
SIZES = {"small": "small", "medium": "medium", "large": "helpful"}


def add_sizes(config):
    """The roles of the two smaller base models, which only figures need."""
    for size in ("small", "medium"):
        config.models[size] = f"{BASE}-{size}"


def respond(**fields):
    return default.respond(
        **{"source": RED_TEAM, "limit": NUM_RED_TEAM, "max_new_tokens": 36, **fields}
    )


def respond_helpful(**fields):
    return respond(**{"source": HELPFUL, "limit": NUM_HELPFUL, **fields})


def revise(**fields):
    # The model was made with worked examples in few of its documents only: it needs none. Its own
    # slips (a wrong word in fifty) would be learnt from; a temperature below 1 leaves most of them
    # out.
    return default.revise(
        **{
            "constitution": CONSTITUTION,
            "num_few_shot": 0,
            "temperature": 0.5,
            "max_critique_tokens": 32,
            "max_revision_tokens": 36,
            **fields,
        }
    )


def steps(learning_rate, batch_size, num_epochs=1):
    return {
        **default.optimisation(learning_rate, batch_size, num_epochs),
        "schedule": "linear",
        "max_length": 128,
        "save_every_steps": 1000,
        "log_every_steps": 5,
    }


def sl(**fields):
    return default.sl(**{"targets": "final", **steps(4e-4, 32, num_epochs=3), **fields})


def compare(**fields):
    return default.compare(
        **{
            "source": RED_TEAM,
            "offset": NUM_RED_TEAM,
            "limit": 600,
            "num_samples": 3,
            "max_new_tokens": 36,
            **fields,
        }
    )


def feedback(**fields):
    return default.feedback(
        **{
            "constitution": CONSTITUTION,
            "num_few_shot": 0,
            "num_headers": 1,
            "max_chain_tokens": 64,
            **fields,
        }
    )


def human(split="helpful", limit=None, file="comparisons"):
    """Ratings of people, here of the oracle with noise: of helpfulness, of harmlessness, or ("") of
    both."""
    return default.human_pairs(str(DATA / f"{file}.jsonl"), split, limit=limit)


def pm(**fields):
    return default.pm(**{"human": human(), **steps(5e-4, 64, num_epochs=3), **fields})


def rl(**fields):
    return default.rl(
        **{
            "prompts": default.prompts(f"{RED_TEAM}+{HELPFUL}"),
            "num_updates": 8,
            "rollouts_per_update": 192,
            "num_epochs": 2,
            "num_minibatches": 2,
            "kl_coefficient": 0.1,
            "learning_rate": 1e-4,
            "value_learning_rate": 5e-4,
            "warmup_updates": 2,
            "missing_eos_penalty": 1.0,
            "max_prompt_tokens": 64,
            "max_new_tokens": 36,
            "save_every_updates": 1000,
            **fields,
        }
    )


def evaluate(models, revisions="", **fields):
    return default.evaluate(
        models,
        revisions,
        **{
            "prompts_red_team": heldout("red_team"),
            "prompts_helpful": heldout("helpful"),
            "prompts_look_alike": heldout("look_alike"),
            "prompts_mixed": heldout("mixed"),
            "max_new_tokens": 36,
            "choices": str(DATA / "hhh.jsonl"),
            "num_chains": 1,
            "max_chain_tokens": 64,
            "comparisons": human("", file="heldout_comparisons"),
            **fields,
        },
    )


def harm(**fields):
    """The regressor of absolute harmfulness: ratings are the oracle's severities; held out are acts
    that it never saw."""
    file = str(DATA / "ratings.jsonl")
    return default.harm(
        **{
            "ratings": default.prompts(file, "train"),
            "heldout": default.prompts(file, "heldout"),
            **steps(5e-4, 32, num_epochs=6),
            **fields,
        }
    )


def get_config():
    config = base_config()
    graph = {
        "respond": respond(),
        "respond_helpful": respond_helpful(),
        "revise": revise(),
        "sl": sl(),
        "compare": compare(),
        "feedback": feedback(),
        "pm": pm(),
        "rl": rl(),
        "evaluate": evaluate({"initial": "helpful", "sl": "@sl", "rl": "@rl"}, "revise"),
        "report": default.report(),
    }
    default.set_graph(config, graph)
    return config
