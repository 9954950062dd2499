"""Models of a run for other tools: `python -m cai_jax.export --workdir=RUN --what=policy|pm|@STAGE
--to=DIR`.

A policy becomes a Hugging Face causal LM, a preference model a sequence classifier with one label;
with tokenizer, chat template and a model card. Adapters are added to their base's weights, or
(--adapters) written as a PEFT LoRA of that base.
"""

from __future__ import annotations

import pathlib
import sys

from cai_jax.errors import Parser, UserError, command

USAGE = (
    "python -m cai_jax.export --workdir=RUN --what=policy|pm|@STAGE[:STEP] --to=DIR "
    "[--dtype=float32|bfloat16] "
    "[--adapters] [--force] [--base-name=ORG/NAME] [--license=NAME]"
)


def find_stage(run, what: str) -> str:
    """The stage that `what` means: the last finished rl (else sl) stage for "policy", the last pm
    stage for "pm"."""
    if what.startswith("@"):
        name = what[1:].partition(":")[0]
        if name not in run.stages:
            raise UserError(f"{run.path}: no stage '{name}'; there are: {', '.join(run.stages)}")
        return name
    if what not in ("policy", "pm"):
        raise UserError(f"--what: expected policy, pm or @STAGE, found '{what}'")
    for kind in ("rl", "sl") if what == "policy" else ("pm",):
        if found := [stage.name for stage in run.of_kind(kind) if stage.done]:
            return found[-1]
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
    """Writes `to`; returns facts of the export (stage, kind, parameters, …).

    `force`: also over another model. `base_name`, `licence`: for the model card, see
    `exporting.origin`.
    """
    import jax.numpy as jnp
    import ml_collections

    from cai_jax.core import sharding
    from cai_jax.exporting import card, folder, origin, peft, target
    from cai_jax.io import artefacts
    from cai_jax.models import lora
    from cai_jax.models import params as params_lib
    from cai_jax.reporting.run_data import Run
    from cai_jax.textmodels.loader import ModelLoader

    run = Run(workdir)
    name = find_stage(run, what)
    role = artefacts.read_json(run.path / name / "model" / "role.json") or {"kind": "policy"}
    reference = what if what.startswith("@") else f"@{name}"
    manifest = run.stages[name].manifest
    mark = target.about(run.path, reference, manifest.get("fingerprint"), adapters)
    target.require_free(to, mark, force)
    base = origin.base_of(run.path, name, role)
    header = origin.header(base, base_name, licence)
    config = ml_collections.ConfigDict(
        {**run.config, "model": {**run.config["model"], "dtype": "float32"}}
    )
    mesh = sharding.make_mesh(
        {"data": 1, "fsdp": -1, "tensor": 1}
    )  # that of the run may have needed more devices
    model = ModelLoader(config, run.path, mesh).load(reference, role["kind"])
    facts = {
        "stage": reference,
        "initialised from": role.get("initialised_from"),
        "architecture": model.config.family,
        "parameters": f"{params_lib.num_params(model.config):,}",
        "dtype": dtype,
        "dialogue form": model.format.kind,
    }
    write, params, offset = {"dtype": dtype, "shard_bytes": shard_bytes}, model.params, None
    if model.adapters:
        has = model.adapters
        facts |= {
            "base": model.weights.name,
            "fingerprint of the base": model.weights.fingerprint,
            "adapters": (
                f"rank {has.rank}, alpha {has.alpha:g}, on {', '.join(has.names(model.config))}"
            ),
        }
        if has.int8:
            facts["base while training"] = (
                "in 8 bits" + adapters * ": just that model is the export without --adapters"
            )
    if adapters and not model.adapters:
        raise UserError(
            f"{reference}: all weights were trained, there are no adapters to export; leave "
            "--adapters away"
        )
    width = jnp.dtype(dtype).itemsize
    target.begin(to, mark, 0 if adapters else width * params_lib.num_params(model.config))
    if adapters:
        named = header.get("base_model") or model.weights.name
        offset = peft.export_adapters(to, model, named, dtype=dtype)
    elif role["kind"] == "policy":
        folder.export_policy(to, model.config, lora.merge(params), model.format, **write)
    else:
        offset = folder.export_reward(
            to, model.config, lora.merge(params), model.format, model.normalisation, **write
        )
    if offset is not None:
        mean, std = model.normalisation or (0.0, 1.0)
        facts |= {"score_offset": offset, "mean of raw scores": mean, "std of raw scores": std}
    if artefacts.is_writer():
        text = card.model_card(run, name, role["kind"], facts, adapters, header)
        artefacts.write_text(pathlib.Path(to) / "README.md", text)
    target.finish(to, mark)
    return facts | {"kind": role["kind"]}


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.export", usage=USAGE, description=__doc__)
    parser.add_argument("--workdir", required=True, help="a run directory")
    parser.add_argument("--what", required=True, help="policy, pm or @STAGE")
    parser.add_argument("--to", required=True, help="the directory to write")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights' file"
    )
    parser.add_argument(
        "--adapters", action="store_true", help="only the adapters, as a PEFT LoRA of their base"
    )
    parser.add_argument(
        "--shard_gigabytes",
        type=float,
        default=5.0,
        help="weights beyond this become several files",
    )
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
