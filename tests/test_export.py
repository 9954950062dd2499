"""Exports without torch: names, shapes, tokenizer, template, card, and the way back into our own
loader."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import cases
from safetensors.numpy import load_file

from cai_jax import export
from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.exporting import card, folder, origin, peft, target
from cai_jax.io import artefacts
from cai_jax.models import heads, hf, lora
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig
from cai_jax.report.run import Run
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.structs import Message
from cai_jax.textmodels.loader import LoadedModel
from tests import fake_run

NORMALISATION = (0.7, 1.9)
DIALOGUES = [
    (Message("human", text), Message("assistant", answer))
    for text, answer in (("Hello?", "Hello."), ("What is bread?", "Flour, water and time."))
]


@pytest.fixture(scope="module")
def reward(tiny_model):
    config, decoder = hf.load_params(f"random:{tiny_model}")
    head = {**heads.init_head(config, jax.random.key(1)), "bias": jnp.float32(0.4)}
    return config, {"decoder": decoder, "head": head}


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_preference_model(kind, reward, tiny_model, tmp_path):
    """One label, no unembedding; scores through our own loader are those of the model with its
    normalisation."""
    config, params = reward
    format = load_format(tiny_model, kind)
    offset = folder.export_reward(
        tmp_path, config, params, format, NORMALISATION, shard_bytes=200_000
    )
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (
        fields["architectures"] == ["LlamaForSequenceClassification"] and fields["num_labels"] == 1
    )
    assert fields["score_offset"] == offset == pytest.approx((0.4 - 0.7) / 1.9)
    assert (
        fields["pad_token_id"] not in format.eos_ids
        and (tmp_path / "model.safetensors.index.json").exists()
    )
    stored = hf.weight_files.open_directory(tmp_path)
    assert "lm_head.weight" not in stored
    np.testing.assert_allclose(
        stored["score.weight"].read(), np.asarray(params["head"]["weight"])[None] / 1.9, rtol=1e-6
    )

    again = load_format(tmp_path)  # the text form is a chat template now
    assert [again.tokenizer.hf.pad_token_id, again.tokenizer.hf.padding_side] == [
        fields["pad_token_id"],
        "right",
    ]
    for dialogue in DIALOGUES:
        turns = [
            {"role": "user", "content": dialogue[0].text},
            {"role": "assistant", "content": dialogue[1].text},
        ]
        text = again.tokenizer.hf.apply_chat_template(turns, tokenize=False)
        assert again.tokenizer.encode(text, special=True) == format.score_input(dialogue)

    if kind == "chat":
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        ours = RewardModel(params, config, format, mesh, NORMALISATION).score(DIALOGUES)
        config, decoder, head = hf.load_classifier(tmp_path)
        assert hf.is_classifier(tmp_path)
        theirs = RewardModel({"decoder": decoder, "head": head}, config, format, mesh).score(
            DIALOGUES
        )
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_last_norm_with_a_bias_takes_the_offset(reward):
    config, params = reward
    rng = np.random.default_rng(0)
    decoder = {"final_norm_bias": rng.normal(size=config.width).astype(np.float32)}
    changed, weight, offset = folder.folded(
        {"decoder": decoder, "head": params["head"]}, NORMALISATION
    )
    normed = rng.normal(size=(3, config.width)).astype(np.float32)
    ours = heads.read_head(
        heads.normalised_head(params["head"], NORMALISATION), normed + decoder["final_norm_bias"]
    )
    assert offset == 0.0
    np.testing.assert_allclose(
        (normed + changed["final_norm_bias"]) @ weight, ours, rtol=1e-5, atol=1e-6
    )


def test_end_tokens_do_not_pad(tiny_model, tmp_path):
    """Where the tokenizer pads with its end token, another control token is chosen."""
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder.pathlib.Path(tiny_model) / name).read_bytes())
    fields = json.loads((folder.pathlib.Path(tiny_model) / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(fields | {"pad_token": fields["eos_token"]})
    )
    format = load_format(tmp_path)
    token, number = folder.padding_token(format)
    assert number not in format.eos_ids and token in format.tokenizer.control_tokens


@pytest.mark.parametrize("name,kind", [("llama", "policy"), ("gpt_neox", "reward")])
def test_adapters_add_up_to_the_merged_export(name, kind, tiny_model, tmp_path):
    """W + alpha / rank · B·A of the PEFT files, matrix by matrix, is what a merged export holds."""
    config = dataclasses.replace(ModelConfig.from_hf(cases.CASES[name]), vocab_size=768)
    shapes = params_lib.abstract_params(config)
    rng = np.random.default_rng(0)
    adapters = lora.Adapters(2, 6.0)
    base, trained = (
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), tree)
        for tree in (shapes, lora.abstract(config, adapters))
    )
    params, normalisation = lora.attach(base, trained, adapters), None
    if kind == "reward":
        params, normalisation = (
            {"decoder": params, "head": heads.init_head(config, jax.random.key(1))},
            NORMALISATION,
        )
    model = LoadedModel(
        "@x", config, params, load_format(tiny_model), kind, normalisation, adapters, trained
    )
    offset = peft.export_adapters(tmp_path, model, f"some/base@{'a' * 40}")
    fields, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    assert (
        fields["base_model_name_or_path"] == "some/base"
        and fields["revision"] == "a" * 40
        and (tmp_path / "tokenizer.json").exists()
    )
    if kind == "reward":
        head = heads.normalised_head(params["head"], NORMALISATION)
        np.testing.assert_allclose(
            tensors.pop("base_model.model.score.weight")[0], head["weight"], rtol=1e-6
        )
        assert offset == pytest.approx(float(head["bias"])) and fields["modules_to_save"] == [
            "score"
        ]
    hf.save_hf(tmp_path / "base", config, base)
    hf.save_hf(tmp_path / "merged", config, lora.merge(lora.attach(base, trained, adapters)))
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged")
    )
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert {f"base_model.model.{key.removesuffix('.weight')}.lora_A.weight" for key in changed} == {
        key for key in tensors if "lora_A" in key
    }
    for key in changed:
        module = key.removesuffix(".weight")
        a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        end = module.rpartition(".")[2]
        assert a.shape[0] == fields["rank_pattern"].get(end, fields["r"])
        scale = fields["alpha_pattern"].get(end, fields["lora_alpha"]) / a.shape[0]
        np.testing.assert_allclose(before[key] + scale * b @ a, after[key], atol=1e-4)


def test_commands(finished, tmp_path, capsys):
    """A finished run's policy and preference model, bfloat16 too; the card tells where they come
    from."""
    workdir = finished[0]
    assert (
        export.main(
            [
                "export",
                f"--workdir={workdir}",
                "--what=policy",
                f"--to={tmp_path / 'rl'}",
                "--dtype=bfloat16",
            ]
        )
        == 0
    )
    assert "policy of @rl" in capsys.readouterr().out
    tensors = load_file(tmp_path / "rl" / "model.safetensors")
    shapes = {
        path: spec.shape
        for path, spec in params_lib.param_table(ModelConfig.from_json(tmp_path / "rl")).items()
    }
    assert {str(value.dtype) for value in tensors.values()} == {"bfloat16"}
    assert sum(value.size for value in tensors.values()) == sum(
        int(np.prod(shape)) for shape in shapes.values()
    )
    generation = json.loads((tmp_path / "rl" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2 and generation["pad_token_id"] == 0
    text = (tmp_path / "rl" / "README.md").read_text()
    run = Run(workdir)
    for told in (
        run.stages["rl"].manifest["fingerprint"],
        "## Constitution",
        "embedded:red_team",
        "kl_coefficient",
        card.plain(run.stages["rl"].summary["headline"]),
        "pm_score",
    ):
        assert told.replace("_", "\\_") in text or told in text

    assert (
        export.main(["export", f"--workdir={workdir}", "--what=@pm", f"--to={tmp_path / 'pm'}"])
        == 0
    )
    # The same again is fine, another export's directory is not, unless it is said so.
    again = ["export", f"--workdir={workdir}", "--what=@pm", f"--to={tmp_path / 'pm'}"]
    assert export.main([*again, "--license=mit", "--base-name=me/tiny"]) == 0
    assert "license: mit" in (tmp_path / "pm" / "README.md").read_text().split("---")[1]
    assert "base_model: me/tiny" in (tmp_path / "pm" / "README.md").read_text().split("---")[1]
    policy = (tmp_path / "rl" / "model.safetensors").read_bytes()
    over = ["export", f"--workdir={workdir}", "--what=@pm", f"--to={tmp_path / 'rl'}"]
    assert export.main(over) == 2 and "holds @rl of" in capsys.readouterr().err
    assert (tmp_path / "rl" / "model.safetensors").read_bytes() == policy
    role = artefacts.read_json(workdir / "pm" / "model" / "role.json")
    text = (tmp_path / "pm" / "README.md").read_text()
    assert "score_offset" in text and str(role["normalisation"][0]) in text
    assert (
        export.main(
            [
                "export",
                f"--workdir={workdir}",
                "--what=@pm",
                f"--to={tmp_path / 'none'}",
                "--adapters",
            ]
        )
        == 2
    )
    assert (
        "there are no adapters to export" in capsys.readouterr().err
        and not (tmp_path / "none").exists()
    )


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--what=@nothing",), "no stage 'nothing'"),
        (("--what=judge",), "expected policy, pm or @STAGE"),
        (("--what=@respond",), "no model there"),
        ((), "--what"),
        (("--what=pm", "--dtype=int8"), "int8"),
    ],
)
def test_mistakes_are_one_line(flags, says, tmp_path, capsys):
    run = tmp_path / "run"
    artefacts.write_json(
        run / "config.json",
        {"config": {"stages": ["respond"], "models": {}, "seed": 0, "model": {"dtype": "float32"}}},
    )
    artefacts.StageDirectory(run / "respond").update_manifest(done=True, kind="respond")
    assert export.main(["export", f"--workdir={run}", f"--to={tmp_path / 'out'}", *flags]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


MARK = target.about("/runs/a", "@rl", "1234", False)


def test_another_export_is_not_written_over(tmp_path):
    """The newcomer's loss: a 135M policy replaced by another run's without a word."""
    target.begin(tmp_path, MARK, 0)
    target.finish(tmp_path, MARK)
    target.require_free(tmp_path, MARK)
    target.require_free(tmp_path, {**MARK, "run": "/moved/a"})  # the same fingerprint
    target.require_free(tmp_path, {**MARK, "fingerprint": "5678"})  # trained again, in its run
    for other in (
        {**MARK, "stage": "@pm"},
        {**MARK, "adapters": True},
        {**MARK, "run": "/runs/b", "fingerprint": "5678"},
    ):
        with pytest.raises(UserError, match="holds @rl of /runs/a; .*--force"):
            target.require_free(tmp_path, other)
        target.require_free(tmp_path, other, force=True)


def test_a_model_that_nobody_exported_is_not_written_over(tmp_path):
    """Such as the base itself."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no export is known of"):
        target.require_free(tmp_path, MARK)
    target.require_free(tmp_path, MARK, force=True)
    (tmp_path / "config.json").rename(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="is no model directory"):
        target.require_free(tmp_path, MARK, force=True)


def test_an_export_that_was_killed_is_repeated(tmp_path):
    """Whatever the kill left: the mark being written, a part of the weights, and the files of the
    export before it."""
    (tmp_path / f".{target.MARK}.writing").write_text("{")
    target.require_free(tmp_path, MARK)
    target.begin(tmp_path, MARK, 0)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"):
        (tmp_path / name).write_text("old")
    (tmp_path / "model.safetensors.partial").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    target.require_free(tmp_path, MARK)
    target.begin(tmp_path, MARK, 0)  # no index of other shards stays beside new weights
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.MARK, "notes.txt"]
    assert json.loads((tmp_path / target.MARK).read_text())["finished"] is False


def test_places_that_cannot_hold_an_export(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        target.require_free(tmp_path / "file", MARK)
    with pytest.raises(UserError, match="are free there"):
        target.begin(tmp_path / "out", MARK, 10**18)
    assert not any((tmp_path / "out").iterdir())  # and the repeat starts from nothing
    target.require_free(tmp_path / "out", MARK)


def test_the_card_says_base_and_licence(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"_name_or_path": "org/model-1.5"}))
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    assert origin.header(str(base)) == {"base_model": "org/model-1.5", "license": "apache-2.0"}
    assert origin.header("org/model") == {"base_model": "org/model"}
    assert origin.header(str(base), "me/mine", "mit") == {"base_model": "me/mine", "license": "mit"}
    (base / "README.md").write_text("---\nlicense: '<b>x: y'\n---\n")  # a file's text is data
    (base / "config.json").write_text(json.dumps({"_name_or_path": "a/b\ntags: x"}))
    assert origin.header(str(base)) == {}
    for name, licence in (("no slash", ""), ("", "two words"), ("a/b\nc: d", "")):
        with pytest.raises(UserError, match="expected"):
            origin.header(str(base), name, licence)


def test_the_base_is_found_through_the_stages(tmp_path):
    for stage, start in (("sl", "org/model"), ("rl", "@sl"), ("more", "@rl:20")):
        artefacts.write_json(tmp_path / stage / "model" / "role.json", {"initialised_from": start})
    role = {"initialised_from": "@more"}
    assert origin.base_of(tmp_path, "last", role) == "org/model"
    assert origin.base_of(tmp_path, "x", {"initialised_from": "@gone"}) == ""


def test_the_card_has_a_judges_accuracy_and_no_local_files(tmp_path):
    """The accuracy by every evaluation's `reward`; of files that were read only the digest."""
    root = fake_run.write(tmp_path / "run", 8)
    secret = {"where": "private/rules.json", "digest": "0123abcd", "files": {"": "0123abcd"}}
    contents = {"constitution": {"text": "file 0123abcd", "parts": [secret]}}
    for stage, fields in {
        "revise": {"contents": contents},
        "evaluate": {
            "reward": "",
            "evals": {
                "preference_pairs": {"kind": "preference_pairs", "reward": "judge"},
                "other": {"kind": "preference_pairs", "reward": "@elsewhere"},
            },
            "evals.preference_pairs.reward →": "@pm",
        },
    }.items():
        manifest = artefacts.read_json(root / stage / "manifest.json")
        manifest["fields"] |= fields
        artefacts.write_json(root / stage / "manifest.json", manifest)
    metrics = artefacts.read_json(root / "evaluate" / "metrics.json")
    judged = [row for row in metrics["rows"] if row["metric"] == "pm_accuracy"]
    for row in judged:
        row["model"] = "judge"
    metrics["rows"].append(judged[-1] | {"model": "@elsewhere", "name": "x", "value": 0.123})
    artefacts.write_json(root / "evaluate" / "metrics.json", metrics)
    text = card.model_card(Run(root), "pm", "reward", {})
    assert text.count("| pm\\_accuracy |") == len(judged) and "0.123" not in text
    manifest = artefacts.read_json(root / "rl" / "manifest.json")
    artefacts.write_json(root / "rl" / "manifest.json", manifest | {"parents": ["revise"]})
    text = card.model_card(Run(root), "rl", "policy", {})
    assert "(digest `0123abcd`)" in text and "private/" not in text and "pm\\_accuracy" not in text
