"""Numbers that cannot be are refused before anything else, by field and range; every numeric field
has a range."""

import ml_collections
import pytest

from cai_jax.configuration import checks
from cai_jax.core import labels
from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline
from configs import default

NOT_RANGES = {"clamp", "temperatures"}  # pairs and lists, which have checks of their own


def config_with(path: str, value):
    """The default config with one field set, whatever its type was."""
    config = default.get_config()
    *sections, name = path.split(".")
    at = config
    for section in sections:
        at = at[section]
    with at.ignore_type():
        at[name] = value
    return config


def refused(path: str, value) -> str:
    with pytest.raises(UserError) as caught:
        checks.check_values(config_with(path, value))
    text = str(caught.value)
    assert text.startswith(f"config.{path}: expected") or text.startswith(f"config.{path}: "), text
    return text


def accepted(path: str, value) -> None:
    checks.check_values(config_with(path, value))


def numeric_fields(fields, path="", kind=""):
    """(path of the section, kind of the stage, name) of every field that holds or may hold a
    number."""
    for name in fields:
        value = fields.get_ref(name).get() if hasattr(fields, "get_ref") else fields[name]
        where = f"{path}.{name}" if path else name
        if isinstance(value, ml_collections.ConfigDict):
            own = value.get("kind", "") if path == "graph" else ""
            yield from numeric_fields(value, where, own)
        elif fields.get_type(name) in (int, float):
            yield path, kind, name


def test_every_numeric_field_of_the_default_has_a_declared_range():
    found = list(numeric_fields(default.get_config()))
    assert len(found) > 100
    missing = [
        f"{path}.{name}"
        for path, kind, name in found
        if name not in NOT_RANGES and checks.range_of(f"config.{path}", kind, name) is None
    ]
    assert not missing, f"declare the range of {missing} in checks.RANGES"


def test_every_numeric_field_refuses_what_is_beside_its_range():
    """Below the least, above the most, NaN, infinity, a truth value; and takes the ends that belong
    to it."""
    for path, kind, name in numeric_fields(default.get_config()):
        if name in NOT_RANGES:
            continue
        where, allowed = f"{path}.{name}".lstrip("."), checks.range_of(f"config.{path}", kind, name)
        wrong = [float("nan"), float("inf"), True]
        wrong += [allowed.low - 1, *[allowed.low] * allowed.open_low]
        wrong += (
            [] if allowed.high is None else [allowed.high + 1, *[allowed.high] * allowed.open_high]
        )
        for value in wrong:
            assert not allowed.holds(value), f"{where} takes {value}"
        for value, is_open in ((allowed.low, allowed.open_low), (allowed.high, allowed.open_high)):
            assert value is None or is_open or allowed.holds(value), f"{where} refuses {value}"


@pytest.mark.parametrize(
    "path,value,message",
    [
        ("graph.rl.clip", -0.2, "more than 0"),
        ("graph.rl.clip", 0, "more than 0"),
        ("graph.rl.value_clip", 0.0, "more than 0"),
        ("graph.rl.kl_target", 0.0, "more than 0"),
        ("graph.rl.kl_target", -1.0, "more than 0"),
        ("graph.rl.kl_horizon", 0, "more than 0"),
        ("graph.rl.temperature", 0.0, "more than 0"),
        ("graph.rl.kl_coefficient", float("nan"), "at least 0"),
        ("graph.sl.learning_rate", float("inf"), "at least 0"),
        ("graph.sl.adapters.alpha", float("nan"), "more than 0"),
        ("graph.pm.holdout_fraction", 1.0, "less than 1"),
        ("graph.respond.top_p", 0.0, "more than 0"),
        ("graph.compare.num_samples", 1, "at least 2"),
        ("graph.respond.num_samples", 2.5, "whole number"),
        ("graph.respond.num_samples", True, "whole number"),
        ("graph.feedback.num_chains", 0, "at least 1"),
        ("seed", 2**63, "from 0 to 9223372036854775807"),
        ("seed", -1, "from 0"),
        ("sampling.batch_size", -1, "at least 0"),
        ("model.dtype", "float16", "take bfloat16"),
        ("graph.evaluate.harm.temperatures", (0.0, float("nan")), "at least 0"),
        ("graph.evaluate.harm.temperatures", (), "at least 0"),
    ],
)
def test_refused(path, value, message):
    assert message in refused(path, value)


@pytest.mark.parametrize(
    "value", [0.4, (0.4,), (0.6, 0.4), (0.4, 0.4), (-0.1, 0.6), (0.4, 1.2), (0.4, float("nan"))]
)
@pytest.mark.parametrize("path", ["graph.pm.clamp", "graph.evaluate.clamp"])
def test_a_clamp_that_cannot_be(path, value):
    assert "two probabilities, the lower one first" in refused(path, value)


def test_a_clamp_on_one_side_of_a_half_is_refused():
    assert "leaves out 0.5" in refused("graph.pm.clamp", (0.6, 0.9))


@pytest.mark.parametrize(
    "path,value",
    [
        ("graph.pm.clamp", (0.0, 1.0)),
        ("graph.pm.clamp", ()),
        ("graph.pm.clamp", (0.5, 0.6)),
        ("graph.pm.human_fraction", 0.0),
        ("graph.pm.human_fraction", 1.0),
        ("graph.pm.holdout_fraction", 0.0),
        ("graph.respond.temperature", 0.0),
        ("graph.rl.gamma", 1),
        ("graph.rl.kl_target", None),
        ("graph.rl.limit", None),
        ("seed", 2**63 - 1),
        ("sampling.batch_size", 0),
        ("sampling.max_length", 0),
        ("graph.evaluate.num_chains", 0),
        ("mesh.data", -1),
    ],
)
def test_accepted(path, value):
    accepted(path, value)


def test_a_field_that_is_not_known_must_be_finite_too():
    config = default.get_config()
    with config.unlocked():
        config.graph.rl.my_weight = float("nan")
    with pytest.raises(UserError, match=r"config\.graph\.rl\.my_weight: expected a number that is"):
        checks.check_values(config)


@pytest.mark.parametrize("clamp", [(0.6, 0.4), (-0.1, 0.5), (0.2, 1.5)])
def test_a_label_never_leaves_zero_to_one(clamp):
    row = {"logprobs": [{"order": "ab", "chain": 0, "a": -0.1, "b": -2.0}]}
    with pytest.raises(ValueError, match="clamp"):
        labels.target([row], clamp=clamp)


def test_a_label_that_is_no_number_is_refused():
    row = {"logprobs": [{"order": "ab", "chain": 0, "a": float("nan"), "b": -2.0}]}
    with pytest.raises(ValueError, match="nan"):
        labels.target([row])


def test_a_stage_that_is_no_group_of_fields():
    config = default.base_config()
    config.graph = {"respond": "respond"}
    config.stages = ("respond",)
    with pytest.raises(UserError, match=r"config.graph.respond: expected the fields of a stage"):
        checks.check_values(config)


@pytest.mark.parametrize("name", ["models", "mesh", "model", "sampling", "graph"])
@pytest.mark.parametrize("value", [None, 3, "text"])
def test_a_group_that_is_none(name, value):
    fields = default.base_config().to_dict() | {"stages": ("respond",), name: value}
    with pytest.raises(UserError, match=rf"config.{name}: expected a group of fields"):
        checks.check_values(ml_collections.ConfigDict(fields))


def test_groups_are_checked_before_anything_reads_them(tmp_path):
    fields = default.base_config().to_dict() | {"stages": ("respond",), "models": "text"}
    with pytest.raises(UserError, match="config.models: expected a group of fields"):
        pipeline.run(ml_collections.ConfigDict(fields), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
