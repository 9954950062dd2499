"""Adapters as a PEFT LoRA directory: adapter_config.json and adapter_model.safetensors, loaded over
the same base.

PEFT adds scale · B·A to a module [out, in], with A [R, in] and B [out, R]; ours are A [L, *in, R]
and B [L, R, *out]. Where the files keep q, k and v in one module, their adapters are joined to
one of the sum of their ranks.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from cai_jax.core import sharding
from cai_jax.exporting import folder
from cai_jax.io import artefacts
from cai_jax.models import heads, hf, weight_files
from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import Adapters


def modules(
    config: ModelConfig, adapters: Adapters, trained: dict
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name of the module: (A [R, in], B [out, R])} of the adapted modules of all layers."""
    pairs: dict[str, list] = {}
    for name in adapters.names(config):
        weight = hf.Weight(("layers", name), config)
        pair = {
            key: np.asarray(sharding.fetch(value), np.float32)
            for key, value in trained["layers"][name].items()
        }
        for layer, file_name in enumerate(weight.names):
            a, b = pair["a"][layer], np.moveaxis(pair["b"][layer], 0, -1)  # [*in, R], [*out, R]
            if weight.part is not None:
                fused = np.zeros((*weight.split_shape[:-1], adapters.rank), np.float32)
                fused[weight.part_index[:-1]] = b
                b = fused
            matrices = a.reshape(-1, adapters.rank).T, b.reshape(-1, adapters.rank)
            pairs.setdefault(file_name.removesuffix(".weight"), []).append(matrices)
    return {
        name: (np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts], axis=1))
        for name, parts in pairs.items()
    }


def _config(adapters: Adapters, adapted: dict, base: str) -> dict:
    """adapter_config.json, but what depends on the kind of model."""
    ranks = {name.rpartition(".")[2]: a.shape[0] for name, (a, _) in adapted.items()}
    joined = {name: rank for name, rank in ranks.items() if rank != adapters.rank}
    name, revision = hf.hub_name(base) or (base, "")  # a run pins the hub's names to a commit
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": joined,
        "alpha_pattern": {name: adapters.scale * rank for name, rank in joined.items()},
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def export_adapters(directory, model, base: str, *, dtype=np.float32) -> float | None:
    """Writes what `PeftModel.from_pretrained(base, directory)` loads.

    Args:
      directory: to write.
      model: a LoadedModel with adapters. A preference model's head, with its normalisation, is
        saved as the module "score"; what is added to its scores cannot be (see `folder`).
      base: the base's name for PEFT.
      dtype: of the file.
    Returns:
      A preference model's score offset, None for a policy.
    """
    directory, adapters, dtype = pathlib.Path(directory), model.adapters, np.dtype(dtype)
    adapted = modules(model.config, adapters, model.trained)
    tensors, offset, more = {}, None, {"task_type": "CAUSAL_LM", "modules_to_save": None}
    for name, (a, b) in adapted.items():
        tensors |= {
            f"base_model.model.{name}.lora_A.weight": a,
            f"base_model.model.{name}.lora_B.weight": b,
        }
    if model.kind == "reward":
        head = {
            name: np.asarray(sharding.fetch(value), np.float64)
            for name, value in model.params["head"].items()
        }
        head = heads.normalised_head(head, model.normalisation)
        tensors["base_model.model.score.weight"], offset = head["weight"][None], float(head["bias"])
        more = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    if not artefacts.is_writer():
        return offset
    directory.mkdir(parents=True, exist_ok=True)
    fields = _config(adapters, adapted, base) | more
    (directory / "adapter_config.json").write_text(
        json.dumps(fields, indent=2) + "\n", encoding="utf-8"
    )
    cast = {name: value.astype(dtype) for name, value in tensors.items()}
    weight_files.write_file(directory / "adapter_model.safetensors", cast)
    hf.copy_tokenizer(model.format.directory, directory)
    template = (
        folder.chat_template(model.format)
        if offset is None
        else folder.scoring_template(model.format)
    )
    folder.write_tokenizer(directory, model.format, folder.padding_token(model.format), template)
    return offset
