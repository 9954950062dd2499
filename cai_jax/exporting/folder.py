"""A trained model as a Hugging Face directory: weights, tokenizer with chat template and padding,
generation config.

A policy is a causal LM. A preference model is a sequence classifier with one label, whose score in
transformers plus config.json's `score_offset` is ours: its normalisation is folded into the head,
and the head's bias, for which those classes have no place, into that offset (or, in models whose
last norm has a bias, into that: the offset is 0 there).
"""

from __future__ import annotations

import json
import pathlib

import jax.numpy as jnp
import numpy as np

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.models import heads, hf
from cai_jax.structs import Message

# The paper's text form as a chat template, for models that were trained on it.
TEXT_TEMPLATE = (
    "{%% for message in messages %%}{%% if message['role'] == 'system' %%}{{ message['content'] }}"
    "{%% elif message['role'] == 'user' %%}{{ '\\n\\nHuman: ' + message['content'] }}"
    "{%% else %%}{{ '\\n\\nAssistant: ' + message['content'] }}"
    "{%% if loop.last %%}{{ %s }}{%% endif %%}{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '\\n\\nAssistant:' }}{%% endif %%}"
)
SAMPLE = (Message("human", "Could you help me?"), Message("assistant", "Yes, with what?"))


def export_policy(
    directory, config, params, format, *, dtype=jnp.float32, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes what AutoModelForCausalLM and AutoTokenizer load; generation ends where the sampler's
    does.

    Args:
      directory: to write.
      config, params, format: of the policy.
      dtype, shard_bytes: of the files, see `hf.save_hf`.
    """
    pad = padding_token(format)
    hf.save_hf(
        directory,
        config,
        params,
        format.directory,
        dtype=dtype,
        shard_bytes=shard_bytes,
        fields=_token_ids(format, pad),
    )
    if artefacts.is_writer():
        write_tokenizer(directory, format, pad, chat_template(format))
        path = pathlib.Path(directory, "generation_config.json")
        fields = _read(path) | _token_ids(format, pad)
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def export_reward(
    directory,
    config,
    params,
    format,
    normalisation,
    *,
    dtype=jnp.float32,
    shard_bytes: int = 5 * 10**9,
) -> float:
    """Writes what AutoModelForSequenceClassification loads.

    Args:
      directory: to write.
      config, format: of the preference model.
      params: {"decoder", "head"}.
      normalisation: (mean, std) of its raw scores or None.
      dtype, shard_bytes: of the files, see `hf.save_hf`.
    Returns:
      The score offset.
    Raises:
      UserError: no token is left to pad with. Those classes read a text at its last token that is
        not padding, which must be the end token.
    """
    pad = padding_token(format)
    if pad is None:
        raise UserError(
            f"{format.directory}: every control token ends an answer; add one to the tokenizer "
            "to pad with"
        )
    decoder, weight_D, offset = folded(params, normalisation)
    fields = _token_ids(format, pad) | {"score_offset": offset}
    hf.save_hf(
        directory,
        config,
        decoder,
        format.directory,
        dtype=dtype,
        shard_bytes=shard_bytes,
        score=weight_D,
        fields=fields,
    )
    if artefacts.is_writer():
        pathlib.Path(directory, "generation_config.json").unlink(missing_ok=True)
        write_tokenizer(directory, format, pad, scoring_template(format))
    return offset


def folded(params: dict, normalisation) -> tuple[dict, np.ndarray, float]:
    """(decoder's parameters, float32 weight [D], offset): normalised score = weight · hidden +
    offset."""
    head = {
        name: np.asarray(sharding.fetch(value), np.float64)
        for name, value in params["head"].items()
    }
    head = heads.normalised_head(head, normalisation)
    weight_D, offset, decoder = head["weight"], float(head["bias"]), params["decoder"]
    if "final_norm_bias" in decoder and np.any(weight_D):
        shift_D = offset * weight_D / np.sum(weight_D**2)
        decoder, offset = (
            {**decoder, "final_norm_bias": decoder["final_norm_bias"] + shift_D.astype(np.float32)},
            0.0,
        )
    return decoder, weight_D.astype(np.float32), offset


def padding_token(format) -> tuple[str, int] | None:
    """A control token that ends no answer: the tokenizer's own padding if it is one, else the
    unknown token, else any."""
    tokenizer = format.tokenizer
    for token in (tokenizer.hf.pad_token, tokenizer.hf.unk_token, *tokenizer.control_tokens):
        number = None if token is None else tokenizer.token_id(token)
        if number is not None and number not in format.eos_ids:
            return token, number
    return None


def chat_template(format) -> str | None:
    """The tokenizer's own, with the arguments that the model was trained with as its defaults; or
    that of the text form where the model was trained on it."""
    if format.kind == "chat":
        template, args = format.tokenizer.template, format.template.settings.args
        defaults = "".join(
            f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
            for name, value in args.items()
            if name in template
        )
        return defaults + template
    bos = "{{ bos_token }}" if format.tokenizer.bos is not None else ""
    return bos + TEXT_TEMPLATE % json.dumps(
        format.tokenizer.hf.convert_ids_to_tokens(format.tokenizer.eos)
    )


def scoring_template(format) -> str | None:
    """A template whose rendering ends with the end token of the last answer, where a preference
    model is read; the tokenizer's own where that cannot be had by leaving out white space."""
    template = chat_template(format)
    if format.kind == "text":
        return template
    trimmed = "{% set dialogue %}" + template + "{% endset %}{{ dialogue.rstrip() }}"
    turns = [
        {"role": "user", "content": SAMPLE[0].text},
        {"role": "assistant", "content": SAMPLE[1].text},
    ]
    text = format.template.render(turns, False, source=trimmed)
    return (
        trimmed
        if format.tokenizer.encode(text, special=True) == format.score_input(SAMPLE)
        else template
    )


def _token_ids(format, pad) -> dict:
    eos = list(format.eos_ids)
    return {
        "bos_token_id": format.tokenizer.hf.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": None if pad is None else pad[1],
    }


def write_tokenizer(directory, format, pad, template: str | None) -> None:
    """Gives a copied tokenizer our padding, on the right, and template.

    Args:
      directory: holds the copied files.
      format: of the model.
      pad: as `padding_token` gives it.
      template: a chat template, None to leave what is there.
    """
    directory = pathlib.Path(directory)
    changes = {"padding_side": "right"} | ({"pad_token": pad[0]} if pad else {})
    if template:
        changes["chat_template"] = template
        (directory / "chat_template.jinja").unlink(missing_ok=True)
    path = directory / "tokenizer_config.json"
    path.write_text(
        json.dumps(_read(path) | changes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    names = directory / "special_tokens_map.json"
    if names.exists() and pad:
        names.write_text(
            json.dumps(_read(names) | {"pad_token": pad[0]}, indent=2) + "\n", encoding="utf-8"
        )


def _read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
