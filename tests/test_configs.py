"""Every file in configs/ runs: as it is in its stages, rounds and worked examples, on a random
model of two layers, with a few prompts and tokens. The default and the zoo in the fast set, the
others marked `long` (tiny.py is run by other tests)."""

import functools
import json
import pathlib

import ml_collections
import pytest

from cai_jax.configuration import topic
from cai_jax.constitution.loader import load_constitution
from cai_jax.data import fitting
from cai_jax.data.dialogue import load_format
from cai_jax.io.artefacts import StageDirectory
from cai_jax.models.config import ModelConfig
from cai_jax.pipeline import graph as pipeline
from cai_jax.stages import dpo, harm, pm, revise, rl, sl
from cai_jax.structs import Message
from cai_jax.textmodels import loader, questions
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.textmodels.local import LocalTextModel
from cai_jax.training import pairs as pairs_of
from cai_jax.training import rollouts
from configs import default, methods, microworld, rlhf, smollm2_cpu
from configs.figures import frontier, judging, labels, pareto, revisions
from configs.models import zoo
from configs.pods import (
    llama3_8b_1xh100,
    llama3_8b_8xh100,
    llama3_8b_v5e_8x8,
    llama3_8b_v5p_4x4x2,
    llama3_70b_v5p_4x4x4,
    llama3_70b_v5p_4x8x8,
    qwen25_32b_v5p_4x4x4,
)
from configs.results import smollm2 as experiment
from tests import recording

ROOT = pathlib.Path(__file__).resolve().parent.parent
PODS = (
    llama3_8b_1xh100,
    llama3_8b_8xh100,
    llama3_8b_v5e_8x8,
    llama3_8b_v5p_4x4x2,
    llama3_70b_v5p_4x4x4,
    llama3_70b_v5p_4x8x8,
    qwen25_32b_v5p_4x4x4,
)
TOKENS = 4  # of every answer of a real run
DRY = {
    "default": default.get_config,
    "zoo": lambda: zoo.get_config("pythia_1_4b"),
    "pods": llama3_70b_v5p_4x8x8.get_config,
    "smollm2_cpu": smollm2_cpu.get_config,
    "microworld": microworld.get_config,
    "methods": methods.get_config,
    **{
        f"figures/{file.__name__.rpartition('.')[2]}": file.get_config
        for file in (frontier, judging, labels, pareto, revisions)
    },
}
MICROWORLD = ("microworld", "methods", "figures")  # made for its model


def model(path: pathlib.Path, tiny_model: str, positions: int) -> str:
    """The tiny model with the positions of a model that the configs are for."""
    path.mkdir()
    for source in pathlib.Path(tiny_model).iterdir():
        (path / source.name).write_bytes(source.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config["max_position_embeddings"] = positions
    (path / "config.json").write_text(json.dumps(config))
    return f"random:{path}"


def shrink(config: ml_collections.ConfigDict, base: str) -> ml_collections.ConfigDict:
    """The same graph with few rows and tokens. Rounds, worked examples and templates stay as they
    are."""
    config.unlock()
    roles = set(config.models)
    config.models = {role: name if name in roles else base for role, name in config.models.items()}
    config.mesh, config.model.dtype = {"data": 1, "fsdp": 1, "tensor": 1}, "float32"
    config.sampling.batch_size = 8
    steps = {}
    for name, stage in config.graph.items():
        _shrink(stage, keep_tokens=False)
        if stage.kind == "rl":
            every, old = stage.snapshot_every_updates, stage.num_updates
            kept = range(every, old, every) if every else ()
            steps |= {f"@{name}:{step}": f"@{name}:{n}" for n, step in enumerate(kept, 1)}
            parts = {"num_minibatches": 1, "num_microbatches": 1, "rollouts_per_update": 4}
            stage.update(parts | {"num_updates": len(kept) + 1, "save_every_updates": 1})
            stage.snapshot_every_updates = int(bool(every))
    for stage in config.graph.values():
        if stage.kind == "evaluate":
            stage.models = {key: steps.get(value, value) for key, value in stage.models.items()}
    return config


def _shrink(fields, keep_tokens: bool) -> None:
    for name, value in fields.items():
        if isinstance(value, ml_collections.ConfigDict):
            _shrink(value, keep_tokens)
        elif name == "limit":
            fields[name] = 4 if value is None else min(value, 4)
        elif name in ("num_choices", "num_samples", "num_chains", "num_epochs", "num_headers"):
            fields[name] = 2 if value is None else min(value, 2)
        elif keep_tokens:
            continue
        elif name.startswith("max_") and name.endswith("_tokens") and name != "max_prompt_tokens":
            fields[name] = TOKENS
        elif name == "batch_size":
            fields.update({"batch_size": 4, "num_microbatches": 1})


def run(config, path: pathlib.Path) -> dict[str, dict]:
    """Runs the whole config; returns stage → manifest."""
    pipeline.run(config, str(path))
    return {name: StageDirectory(path / name).manifest for name in config.stages}


def require_all_rows(manifests: dict[str, dict]) -> None:
    for name, manifest in manifests.items():
        assert manifest["done"], name
        lost = {reason for reason in manifest["dropped"] if "longer than the context" in reason}
        assert not lost, (name, manifest["dropped"])


def long_constitution(path: pathlib.Path) -> str:
    """Worked examples as long as the paper's: five of some 400 words."""
    found = load_constitution()
    text = "This is why it would be better to do it in another way, and to say so. " * 20
    value = {
        "critique_principles": [
            {"id": p.id, "critique_request": p.critique_request, "revision_request": "Rewrite it."}
            for p in found.critique_principles
        ],
        "comparison_principles": [
            {"id": p.id, "text": p.text} for p in found.comparison_principles
        ],
        "critique_examples": [
            {
                "id": f"long{number}",
                "dialogue": [{"role": "human", "text": f"Question {number}?"}],
                "response": "Answer.",
                "critique_request": "What is wrong with it?",
                "critique": text,
                "revision_request": "Rewrite it.",
                "revision": "A better answer.",
            }
            for number in range(5)
        ],
    }
    path.write_text(json.dumps(value))
    return str(path)


class Judge:
    """A preference model that likes long answers."""

    name, scale = "judge", 1.0

    def __init__(self, *_, **__):
        pass

    def score_each(self, dialogues):
        return ((index, len(dialogue[-1].text) / 100) for index, dialogue in enumerate(dialogues))


@pytest.fixture()
def dry(tmp_path, monkeypatch):
    """run(config, base) → stage → manifest: all stages on answers as long as their limits allow,
    which no model makes; of a training stage what it would learn from. So the words, lengths and
    numbers of examples are those of the config."""

    def load(models, reference, kind="policy", format="auto", int8=None):
        base = models.run_config.models.base.removeprefix("random:")
        found = ModelConfig.from_json(base)
        return LoadedModel(reference, found, {}, formats(base, format), kind)

    def engine(models, model, **options):
        def answer(asked):
            count, tokenizer = asked.sampling.max_new_tokens, model.format.tokenizer
            tokens = tokenizer.encode(f"{asked.id}:" + " word" * count)[:count]
            return tokenizer.decode(tokens), "length"

        limit = fitting.smallest(models.run_config.sampling.max_length, model.config.max_length)
        return recording.Recorder([], model, answer, lambda a: [-1.0] * len(a.options), limit)

    def train_sl(ctx):
        model = ctx.models.load(ctx.config.init, format=ctx.config.format)
        return {"rows": len(sl.examples(ctx, model.format, model.config.max_length))}

    def train_rl(ctx):
        policy = ctx.models.load(ctx.config.policy, format=ctx.config.format)
        return {"rows": len(rollouts.fitting_prompts(ctx, policy, [policy]))}

    def train_pm(ctx):
        pairs = pairs_of.ai_pairs(ctx) + pairs_of.human_pairs(ctx)
        ctx.require_rows(pairs, "pairs")
        return {"rows": len(pairs)}

    def train_dpo(ctx):  # without people's pairs there may be none: answers here are often equal
        return {"rows": len(pairs_of.ai_pairs(ctx) + pairs_of.revision_pairs(ctx))}

    formats = functools.cache(load_format)
    monkeypatch.setattr(loader.ModelLoader, "load", load)
    monkeypatch.setattr(loader.ModelLoader, "engine", engine)
    for module, train in ((sl, train_sl), (rl, train_rl), (pm, train_pm), (dpo, train_dpo)):
        monkeypatch.setattr(module, "run", train)
    monkeypatch.setattr(harm, "run", lambda ctx: {"rows": len(harm.read(ctx, "ratings"))})
    monkeypatch.setattr(loader, "RewardModel", Judge)
    return lambda config: run(config, tmp_path / "run")


def few_rows(config, base: str):
    """The config as it is, on few prompts; the report is made by other tests."""
    config.unlock()
    roles = set(config.models)
    config.models = {role: name if name in roles else base for role, name in config.models.items()}
    config.mesh, config.model.dtype = {"data": 1, "fsdp": 1, "tensor": 1}, "float32"
    for stage in config.graph.values():
        _shrink(stage, keep_tokens=True)
    config.stages = tuple(name for name in config.stages if config.graph[name].kind != "report")
    return config


# Graphs of the microworld's figures differ in few fields: one of them is in the fast set.
SLOW = {name for name in DRY if name.startswith("figures/")} - {"figures/pareto"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in SLOW else ()) for name in DRY],
)
def test_nothing_is_too_long_for_its_config(name, dry, tmp_path, tiny_model):
    """Answers as long as allowed, in every round, behind all worked examples of the config: no row
    is left out."""
    positions = 2048 if name == "zoo" else 8192
    config = few_rows(DRY[name](), model(tmp_path / "model", tiny_model, positions))
    if name.startswith(MICROWORLD):
        config.models.base = microworld.BASE
    manifests = dry(config)
    require_all_rows(manifests)
    for stage, manifest in manifests.items():
        counts = manifest["summary"].get("few_shot", {})
        assert name == "zoo" or not counts.get("examples"), (stage, counts)
    if name == "default":
        records = StageDirectory(tmp_path / "run" / "revise").records()
        assert all(len(row["rounds"]) == 4 and len(row["few_shot_ids"]) == 5 for row in records)


def test_worked_examples_as_long_as_the_papers_in_2048_positions(dry, tmp_path, tiny_model):
    """Some are left out, no row is."""
    config = few_rows(zoo.get_config("pythia_1_4b"), model(tmp_path / "model", tiny_model, 2048))
    config.topic.constitution = long_constitution(tmp_path / "constitution.json")
    manifests = dry(config)
    require_all_rows(manifests)
    counts = manifests["revise"]["summary"]["few_shot"]
    assert 0 < counts["requests"] == counts["of"] < counts["examples"] < 5 * counts["of"]


def pairs_file(path: pathlib.Path) -> str:
    """Pairs in the form of hh-rlhf, with a prompt each."""
    rows = [
        {
            "chosen": f"\n\nHuman: What is {n} + 1?\n\nAssistant: {n + 1}.",
            "rejected": f"\n\nHuman: What is {n} + 1?\n\nAssistant: No.",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("variant", ["", "variant=harmless,"])
def test_the_baselines_run_on_published_files(variant, dry, tmp_path, tiny_model):
    files = [pairs_file(tmp_path / f"{name}.jsonl") for name in ("helpful", "harmless")]
    named = f"helpful={files[0]}" + f",harmless={files[1]}" * bool(variant)
    config = few_rows(rlhf.get_config(variant + named), model(tmp_path / "model", tiny_model, 2048))
    manifests = dry(config)
    require_all_rows(manifests)
    assert manifests["pm"]["summary"]["rows"] >= 4


@pytest.mark.long
@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_the_published_experiment_fits(size, dry, tmp_path, tiny_model, shared_data):
    config = experiment.get_config(f"size={size},data={shared_data}")
    manifests = dry(few_rows(config, model(tmp_path / "model", tiny_model, 8192)))
    require_all_rows(manifests)


@pytest.mark.parametrize("official", [False, True], ids=["ours", "official"])
@pytest.mark.parametrize("name", ["default", "zoo", "pods", "smollm2_cpu"])
def test_headers_and_limits_fit_by_the_tokens_of_smollm2(name, official, smollm2, request):
    """No model runs: all worked examples, the longest principle, an answer and every new token of a
    round."""
    config = topic.resolve(DRY[name]())
    format, constitution = load_format(smollm2), "embedded"
    if official:
        constitution = str(request.getfixturevalue("shared_data") / "official" / "prompts")
    found, limit = load_constitution(constitution), config.sampling.max_length
    longest = max(found.critique_principles, key=lambda p: len(p.critique_request))
    stage, answer = config.graph.revise, config.graph.respond.max_new_tokens
    model = LocalTextModel("smollm2", format, limit, lambda: None)
    header = sum(revise.worked_examples(found.critique_examples[: stage.num_few_shot], True), ())
    asked = (
        Message("human", "word " * 100),
        Message("assistant", ""),
        Message("critique_request", longest.critique_request),
        Message("critique", ""),
        Message("revision_request", longest.revision_request),
    )
    new = max(answer, stage.max_revision_tokens) + stage.max_critique_tokens
    prompt = fitting.num_tokens(format.prompt(header + asked, reply="revision"))
    assert prompt + new + stage.max_revision_tokens <= limit
    stage = config.graph.feedback
    modes = {stage.mode} if name == "smollm2_cpu" else {"multiple_choice", "chain_of_thought"}
    for mode in sorted(modes):
        _, examples = questions.draw_examples(found, mode, stage.num_few_shot, 0, "header")
        if mode == "multiple_choice":
            request = questions.choice("", "word " * 200, examples=examples)
            segments, _ = model.question(request, len(examples))
        else:
            request = questions.chain("", "word " * 200, None, examples)
            segments = model.prompt(request, len(examples))
        prompt = fitting.num_tokens(segments)
        new = 2 * config.graph.compare.max_new_tokens + stage.max_chain_tokens
        assert prompt + new <= limit, mode


REAL = {
    **{name: DRY[name] for name in DRY if name != "microworld"},
    "rlhf": rlhf.get_config,
    "microworld": microworld.get_config,
}


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in REAL if name != "default"])
def test_a_config_runs_on_a_model(name, tmp_path, tiny_model):
    base = model(tmp_path / "model", tiny_model, 2048 if name == "zoo" else 8192)
    if name.startswith(MICROWORLD):
        base = microworld.BASE
    config = shrink(REAL[name](), base)
    if name == "zoo":
        config.topic.constitution = long_constitution(tmp_path / "constitution.json")
    require_all_rows(run(config, tmp_path / "run"))


@pytest.mark.long
def test_the_default_config_runs(tmp_path, tiny_model):
    """It could not: its context was shorter than its worked examples, and every revision was left
    out."""
    config = shrink(default.get_config(), model(tmp_path / "model", tiny_model, 8192))
    manifests = run(config, tmp_path / "run")
    require_all_rows(manifests)
    for name in ("revise", "feedback"):
        assert manifests[name]["summary"]["few_shot"]["examples"] == 0
    records = StageDirectory(tmp_path / "run" / "revise").records()
    assert all(len(row["rounds"]) == 4 and len(row["few_shot_ids"]) == 5 for row in records)
