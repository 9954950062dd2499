"""Adapters beside PEFT: twenty steps of training from the same start, and exports that PEFT
loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from parity import cases
from parity.make_reference import model_of
from test_live_torch import our_logits

from cai_jax.core import optim, sharding
from cai_jax.data.dialogue import load_format
from cai_jax.exporting import peft as exporting
from cai_jax.models import heads, hf, lora
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages import sl
from cai_jax.structs import Message
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.training import batching
from cai_jax.training import state as state_lib

MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])
STEPS = 20


def batches(vocab_size):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        examples = [
            sl.Example(
                str(i), rng.integers(0, vocab_size, n).astype(np.int32), np.arange(n) >= n // 3
            )
            for i, n in enumerate((20, 13, 17, 9))
        ]
        yield sl.make_batch(
            examples, batching.Shape(4, 32)
        )  # an example a row, as PEFT's model has it


@pytest.mark.parametrize("targets", [("all",), ("q", "v")])
def test_twenty_steps(targets, tmp_path):
    """Loss of every step and the adapters after the last: relative 1e-3."""
    theirs = model_of(cases.CASES["llama"])
    theirs.save_pretrained(tmp_path)
    config, base = hf.load_hf(tmp_path, mesh=MESH)
    adapters = lora.Adapters(4, 12.0, targets)
    tx = optim.adam(3e-3, max_grad_norm=None)
    start = state_lib.start(config, base, MESH, np.array([0, 7], np.uint32), adapters)
    modules = exporting.modules(config, adapters, start)

    settings = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=sorted({name.rpartition(".")[2] for name in modules}),
    )
    theirs = peft.get_peft_model(theirs, settings).train()
    parameters = {name: value for name, value in theirs.named_parameters() if value.requires_grad}
    assert len(parameters) == 2 * len(modules)
    with torch.no_grad():
        for name, (a, b) in modules.items():
            for key, value in (("lora_A", a), ("lora_B", b)):
                parameters[f"base_model.model.{name}.{key}.default.weight"].copy_(
                    torch.from_numpy(value.copy())
                )
    adam = torch.optim.Adam(parameters.values(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8)

    params = state_lib.abstract_params(config, "policy", MESH, adapters=adapters)
    abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, MESH)}
    update = state_lib.make_update(
        sl.make_loss(config, jnp.float32, chunk=0), tx, abstract, MESH, 2, adapters, base
    )
    state = {"params": start, "optimiser": state_lib.init_optimiser(tx, start, MESH)}
    ours, other = [], []
    for batch in batches(config.vocab_size):
        state, scalars = update(state, batch)
        ours.append(float(scalars["loss"]))
        tokens, target = torch.from_numpy(batch["tokens"]).long(), torch.from_numpy(batch["target"])
        logits = theirs(
            input_ids=tokens, attention_mask=torch.from_numpy(batch["segments"] > 0)
        ).logits
        logprobs = torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
        loss = -logprobs[target[:, 1:]].mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        other.append(loss.item())
    print(
        f"largest relative difference of {STEPS} losses: "
        f"{np.abs(np.array(ours) / other - 1).max():.1e}"
    )
    np.testing.assert_allclose(ours, other, rtol=1e-3)
    for name, pair in exporting.modules(config, adapters, state["params"]).items():
        for key, value in zip(("lora_A", "lora_B"), pair, strict=True):
            found = parameters[f"base_model.model.{name}.{key}.default.weight"].detach().numpy()
            assert np.abs(found).max() > 1e-3
            np.testing.assert_allclose(value, found, atol=1e-3 * np.abs(found).max())


def loaded(name, kind, tiny_model, tmp_path, targets=("all",)):
    """A model of that family with adapters, and the directory of its base."""
    config = dataclasses.replace(
        ModelConfig.from_hf(cases.CASES[name]), vocab_size=768, max_length=256
    )
    base, adapters = (
        params_lib.init_params(config, jax.random.key(0)),
        lora.Adapters(3, 6.0, targets),
    )
    rng = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype),
        lora.abstract(config, adapters),
    )
    params, normalisation = lora.attach(base, trained, adapters), None
    if kind == "reward":
        head = {**heads.init_head(config, jax.random.key(1)), "bias": jnp.float32(0.4)}
        params, normalisation = {"decoder": params, "head": head}, (0.7, 1.9)
    hf.save_hf(tmp_path / "base", config, base, tiny_model)
    return LoadedModel(
        "@x", config, params, load_format(tiny_model), kind, normalisation, adapters, trained
    )


@pytest.mark.parametrize(
    "name,targets",
    [
        *(
            (name, ("all",))
            for name in (
                "llama",
                "mistral",
                "qwen3",
                "gemma2",
                "gemma3",
                "olmo2",
                "smollm3",
                "gpt_neox",
            )
        ),
        ("qwen2", ("o", "down")),
        ("gpt_neox", ("v", "up")),
    ],
)
def test_policy(name, targets, tiny_model, tmp_path):
    model = loaded(name, "policy", tiny_model, tmp_path, targets)
    exporting.export_adapters(tmp_path / "adapters", model, str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    tokens = np.random.default_rng(1).integers(0, 768, (2, 14))
    with torch.no_grad():
        plain = base.eval()(torch.from_numpy(tokens)).logits.numpy()
        theirs = (
            peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
            .eval()(torch.from_numpy(tokens))
            .logits.numpy()
        )
    ours = our_logits(model.params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool), model.config)
    assert np.abs(theirs - plain).max() > 1e-2
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "adapters").chat_template


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_preference_model(name, tiny_model, tmp_path):
    model = loaded(name, "reward", tiny_model, tmp_path)
    offset = exporting.export_adapters(tmp_path / "adapters", model, str(tmp_path / "base"))
    dialogues = [
        (Message("human", text), Message("assistant", answer))
        for text, answer in (
            ("Hello?", "Hello."),
            ("What is bread, and how long does it rest?", "Flour, water and time."),
        )
    ]
    ours = RewardModel(model.params, model.config, model.format, MESH, model.normalisation).score(
        dialogues
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapters")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapters").eval()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": a.text}, {"role": "assistant", "content": b.text}],
            tokenize=False,
        )
        for a, b in dialogues
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = (
            theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[:, 0]
            .numpy()
        )
    np.testing.assert_allclose(scores + offset, ours, atol=1e-4)
