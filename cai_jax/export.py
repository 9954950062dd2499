"""Models of a run for other tools: `python -m cai_jax.export --workdir=RUN --what=policy|pm|@STAGE
--to=DIR`.

A policy becomes a Hugging Face causal LM, a preference model a sequence classifier with one label;
with tokenizer, chat template and a model card. Adapters are added to their base's weights, or
(--adapters) written as a PEFT LoRA of that base.
"""

from __future__ import annotations

import pathlib
import sys

from cai_jax import references
from cai_jax.errors import Parser, UserError, command


def find_stage(run, what: str) -> str:
    """The stage that `what` means: the last finished rl (else dpo, else sl) stage for "policy", the
    last pm stage for "pm"."""
    target = references.parse(what)
    if target.kind == references.STAGE:
        name = target.stage
        if name not in run.stages:
            raise UserError(f"{run.path}: no stage '{name}'; there are: {', '.join(run.stages)}")
        return name
    if what not in ("policy", "pm"):
        raise UserError(f"--what: expected policy, pm or @STAGE, not '{what}'")
    for kind in ("rl", "dpo", "sl") if what == "policy" else ("pm",):
        if done := [stage.name for stage in run.of_kind(kind) if stage.done]:
            return done[-1]
    raise UserError(
        f"{run.path}: no finished stage there has trained a {what}; `python -m cai_jax.status` "
        "tells where it is"
    )


def export(
    workdir: str,
    what: str,
    to: str,
    dtype: str = "float32",
    shard_bytes: int = 5 * 10**9,
    adapters: bool = False,
    *,
    force: bool = False,
    base_name: str = "",
    licence: str = "",
) -> dict:
    """Writes a trained model as a directory for other tools.

    Args:
      workdir: a run directory.
      what: "policy", "pm" or "@STAGE[:STEP]".
      to: the directory to write.
      dtype: of the weights' files, "float32" or "bfloat16".
      shard_bytes: weights beyond this become several files.
      adapters: only the adapters, as a PEFT LoRA of their base.
      force: also over another model.
      base_name, licence: for the model card, see `exporting.origin`.
    Returns:
      Facts of the export (stage, kind, parameters, …).
    Raises:
      UserError: there is no such model, or `to` cannot be written.
    """
    import jax.numpy as jnp
    import ml_collections

    from cai_jax.core import sharding
    from cai_jax.exporting import card, folder, origin, peft, target
    from cai_jax.io import artefacts
    from cai_jax.models import lora
    from cai_jax.models import params as params_lib
    from cai_jax.report.run import Run
    from cai_jax.textmodels.loader import ModelLoader

    # --- Which model, and whether it may be written there
    run = Run(workdir)
    name = find_stage(run, what)
    role = artefacts.read_json(run.path / name / "model" / "role.json") or {"kind": "policy"}
    reference = what if references.stage_of(what) else f"@{name}"
    fingerprint = run.stages[name].manifest.get("fingerprint")
    mark = target.about(run.path, reference, fingerprint, adapters)
    target.require_free(to, mark, force)
    header = origin.header(origin.base_of(run.path, name, role), base_name, licence)

    # --- Its weights, on one mesh axis: the run's mesh may have needed more devices
    fields = {**run.config, "model": {**run.config["model"], "dtype": "float32"}}
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    loader = ModelLoader(ml_collections.ConfigDict(fields), run.path, mesh)
    model = loader.load(reference, role["kind"])
    if adapters and not model.adapters:
        raise UserError(
            f"{reference}: all weights were trained, there are no adapters to export; leave "
            "--adapters away"
        )
    num_params = params_lib.num_params(model.config)
    facts = {
        "stage": reference,
        "initialised from": role.get("initialised_from"),
        "architecture": model.config.family,
        "parameters": f"{num_params:,}",
        "dtype": dtype,
        "dialogue form": model.format.kind,
        **(_adapter_facts(model, adapters) if model.adapters else {}),
    }

    # --- The files, between two marks
    target.begin(to, mark, 0 if adapters else jnp.dtype(dtype).itemsize * num_params)
    write, offset = {"dtype": dtype, "shard_bytes": shard_bytes}, None
    if adapters:
        named = header.get("base_model") or model.weights.name
        offset = peft.export_adapters(to, model, named, dtype=dtype)
    elif role["kind"] == "policy":
        folder.export_policy(to, model.config, lora.merge(model.params), model.format, **write)
    else:
        merged = lora.merge(model.params)
        offset = folder.export_reward(
            to, model.config, merged, model.format, model.normalisation, **write
        )
    if offset is not None:
        mean, std = model.normalisation or (0.0, 1.0)
        facts |= {"score_offset": offset, "mean of raw scores": mean, "std of raw scores": std}
    if artefacts.is_writer():
        text = card.model_card(run, name, role["kind"], facts, adapters, header)
        artefacts.write_text(pathlib.Path(to) / "README.md", text)
    target.finish(to, mark)
    return facts | {"kind": role["kind"]}


def _adapter_facts(model, alone: bool) -> dict:
    """What a card says of adapters, which are written `alone` or added to their base."""
    has = model.adapters
    names = ", ".join(has.names(model.config))
    facts = {
        "base": model.weights.name,
        "fingerprint of the base": model.weights.fingerprint,
        "adapters": f"rank {has.rank}, alpha {has.alpha:g}, on {names}",
    }
    if has.int8:
        note = ": just that model is the export without --adapters" if alone else ""
        facts["base while training"] = f"in 8 bits{note}"
    return facts


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="python -m cai_jax.export", description=__doc__)
    parser.add_argument("--workdir", required=True, help="a run directory")
    parser.add_argument("--what", required=True, help="policy, pm or @STAGE[:STEP]")
    parser.add_argument("--to", required=True, help="the directory to write")
    option = parser.add_argument
    option("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    option("--adapters", action="store_true", help="only the adapters, as a PEFT LoRA")
    option("--shard_gigabytes", type=float, default=5.0, help="of a file of weights, at most")
    parser.add_argument("--force", action="store_true", help="write over another model's directory")
    parser.add_argument(
        "--base-name",
        "--base_name",
        default="",
        metavar="ORG/NAME",
        help="what the base model is called on the hub, for the card and for adapters",
    )
    parser.add_argument(
        "--license",
        default="",
        metavar="NAME",
        help="for the card, such as apache-2.0; by default that of the base's own card",
    )
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    if arguments.shard_gigabytes <= 0:
        raise UserError("--shard_gigabytes: expected a positive number")
    facts = export(
        arguments.workdir,
        arguments.what,
        arguments.to,
        arguments.dtype,
        max(1, int(arguments.shard_gigabytes * 1e9)),
        arguments.adapters,
        force=arguments.force,
        base_name=arguments.base_name,
        licence=arguments.license,
    )
    print(
        f"{arguments.to}: {facts['kind']} of {facts['stage']}, {facts['parameters']} "
        f"parameters, {facts['dtype']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
