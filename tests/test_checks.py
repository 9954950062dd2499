"""Numbers that cannot be are refused before anything else, by field and range; every numeric field
has a range."""

import ml_collections
import pytest

from cai_jax.configuration import checks, fields
from cai_jax.configuration.run import RUN
from cai_jax.configuration.stages import STAGES
from cai_jax.core import labels
from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline
from configs import default


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


def declared():
    """(name, field) of every field of every table."""

    def within(table, path):
        for name, item in table.items():
            where = f"{path}.{name}"
            if isinstance(item, fields.Field):
                yield where, item
            elif not isinstance(item, fields.Named):
                yield from within(item, where)
            elif isinstance(item.of, fields.Field):
                yield f"{where}.NAME", item.of
            else:
                for kind, table in item.of.items():
                    yield from within(fields.table_of(table), f"{where}.{kind}")

    return dict(within(RUN, "config"))


def test_every_field_says_what_it_is_and_takes_its_own_default():
    found = declared()
    assert len(found) > 250
    for where, field in found.items():
        assert field.comment.strip(), where
        assert field.type in (int, float, bool, str, tuple, object), where
        if ".NAME" not in where and where != "config.stages":
            field.check(where, field.default)


def test_every_number_has_a_range_and_refuses_what_is_beyond_it():
    """Below the least, above the most, NaN, infinity, a truth value; and takes the ends that belong
    to it."""
    numbers = {w: field for w, field in declared().items() if field.type in (int, float)}
    assert len(numbers) > 150
    for where, field in numbers.items():
        allowed = field.range
        assert isinstance(allowed, fields.Range), where
        wrong = [float("nan"), float("inf"), True, "1", *[0.5] * (field.type is int)]
        if where.endswith(".weight"):  # of a reward's term, which may be a penalty
            assert allowed.low is None
            field.check(where, -0.01)
        else:
            wrong += [allowed.low - 1, *[allowed.low] * allowed.open_low]
        if allowed.high is not None:
            wrong += [allowed.high + 1, *[allowed.high] * allowed.open_high]
        for value in wrong:
            with pytest.raises(UserError, match="expected (a number|an integer)"):
                field.check(where, value)
        for value, is_open in ((allowed.low, allowed.open_low), (allowed.high, allowed.open_high)):
            if value is not None and not is_open:
                field.check(where, value)


def test_what_inputs_and_models_a_table_names_exist():
    written = {kind.writes for kind in STAGES.values()}
    made = {kind.makes for kind in STAGES.values()} | {"any"}
    for where, field in declared().items():
        if isinstance(field.range, fields.Records):
            assert field.range.of in written, where
        if isinstance(field.range, fields.Model) and not callable(field.range.needs):
            assert field.range.needs in made, where


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda c: c.graph.rl.update({"clipp": 0.1}),
            "config.graph.rl: no field 'clipp'; did you mean 'clip'",
        ),
        (
            lambda c: c.graph.rl.prompts.update({"limits": 1}),
            "config.graph.rl.prompts: no field 'limits'",
        ),
        (lambda c: c.update({"sead": 1}), "config: no field 'sead'; did you mean 'seed'"),
        (
            lambda c: c.graph.rl.update({"kind": "reports"}),
            "config.graph.rl.kind: no kind 'reports'; did you mean 'report'",
        ),
        (
            lambda c: c.graph.rl.__setattr__("prompts", 3),
            "config.graph.rl.prompts: expected a group of fields",
        ),
        (lambda c: c.graph.sl.inputs.update({"revision": ""}), "did you mean 'revisions'"),
    ],
)
def test_a_name_that_is_not_declared_is_refused_with_the_nearest(change, message):
    config = default.get_config()
    with config.unlocked(), config.ignore_type():
        change(config)
    with pytest.raises(UserError) as caught:
        checks.check_values(config)
    assert message in str(caught.value)


def test_a_stage_is_made_of_what_is_given_and_the_defaults():
    made = default.stage("pm", comparisons="", human={"limit": 3}, batch_size=7)
    assert made["inputs"] == {"comparisons": "", "labels": "feedback"}
    assert made["human"]["source"] == "topic:comparisons" and made["human"]["limit"].get() == 3
    assert made["batch_size"] == 7 and made["kind"] == "pm"
    with pytest.raises(UserError, match="pm: no field 'batchsize'; did you mean 'batch_size'"):
        default.pm(batchsize=7)
    with pytest.raises(UserError, match="'split_'.*did you mean 'split'"):
        default.prompts(split_="train")


@pytest.mark.parametrize(
    "path,value,message",
    [
        ("graph.rl.clip", -0.2, "more than 0"),
        ("graph.rl.clip", 0, "more than 0"),
        ("graph.rl.value_clip", 0.0, "more than 0"),
        ("graph.rl.kl_target", 0.0, "more than 0"),
        ("graph.rl.kl_target", -1.0, "more than 0"),
        ("graph.rl.kl_horizon", 0, "at least 1"),
        ("graph.rl.temperature", 0.0, "more than 0"),
        ("graph.rl.kl_coefficient", float("nan"), "at least 0"),
        ("graph.sl.learning_rate", float("inf"), "at least 0"),
        ("graph.sl.adapters.alpha", float("nan"), "more than 0"),
        ("graph.pm.holdout_fraction", 1.0, "less than 1"),
        ("graph.respond.top_p", 0.0, "more than 0"),
        ("graph.compare.num_samples", 1, "at least 2"),
        ("graph.respond.num_samples", 2.5, "an integer"),
        ("graph.respond.num_samples", True, "an integer"),
        ("graph.feedback.num_chains", 0, "at least 1"),
        ("seed", 2**63, "from 0 to 9223372036854775807"),
        ("seed", -1, "from 0"),
        ("sampling.batch_size", -1, "at least 0"),
        ("model.dtype", "float16", "take bfloat16"),
        ("graph.evaluate.evals.harm.temperatures", (0.0, float("nan")), "at least 0"),
        ("graph.evaluate.evals.harm.temperatures", (), "at least 0"),
    ],
)
def test_refused(path, value, message):
    assert message in refused(path, value)


@pytest.mark.parametrize(
    "value", [0.4, (0.4,), (0.6, 0.4), (0.4, 0.4), (-0.1, 0.6), (0.4, 1.2), (0.4, float("nan"))]
)
@pytest.mark.parametrize("path", ["graph.pm.clamp", "graph.evaluate.evals.multiple_choice.clamp"])
def test_a_clamp_that_cannot_be(path, value):
    assert "two probabilities, the lower one first" in refused(path, value)


def test_a_clamp_on_one_side_of_a_half_is_refused():
    assert "with 0.5 between them" in refused("graph.pm.clamp", (0.6, 0.9))


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
        ("graph.rl.prompts.limit", None),
        ("seed", 2**63 - 1),
        ("sampling.batch_size", 0),
        ("sampling.max_length", 0),
        ("graph.evaluate.evals.multiple_choice.num_chains", 0),
        ("mesh.data", -1),
    ],
)
def test_accepted(path, value):
    accepted(path, value)


@pytest.mark.parametrize("clamp", [(0.6, 0.4), (-0.1, 0.5), (0.2, 1.5)])
def test_a_label_never_leaves_zero_to_one(clamp):
    row = {"logprobs": [{"order": "ab", "chain": 0, "a": -0.1, "b": -2.0}]}
    with pytest.raises(ValueError, match="clamp"):
        labels.target([row], clamp=clamp)


def test_a_label_that_is_no_number_is_refused():
    row = {"logprobs": [{"order": "ab", "chain": 0, "a": float("nan"), "b": -2.0}]}
    with pytest.raises(ValueError, match="nan"):
        labels.target([row])


@pytest.mark.parametrize("name", ["/a", "a/b", "x y", "x\n"])
@pytest.mark.parametrize(
    "group,fields,prefix",
    [
        ("evaluate.evals", {"kind": "answer_statistics"}, ""),
        ("evaluate.models", "@sl", ""),
        ("rl.rewards", {"kind": "length"}, ""),
        ("evaluate", {"source": "embedded:helpful"}, "prompts_"),
    ],
)
def test_names_that_become_names_of_files(group, fields, prefix, name):
    config = default.get_config()
    config.unlock()
    stage, _, key = group.partition(".")
    at = config.graph[stage][key] if key else config.graph[stage]
    at[prefix + name] = fields
    with pytest.raises(UserError, match=rf"config\.graph\.{group}: .* cannot be a name"):
        checks.check_values(config)


def test_a_name_with_a_dot_is_one_line_where_a_config_is_written():
    """The defect: `ConfigDict` refused it later, without the field."""
    for made in (
        lambda: default.evaluate({}, evals={"a.b": {"kind": "answer_statistics"}}),
        lambda: default.evaluate({}, **{"prompts_a.b": default.prompts()}),
        lambda: default.rl(rewards={"a.b": {"kind": "length"}}),
    ):
        with pytest.raises(UserError, match=r"'\w*a\.b' cannot be a name"):
            made()


def test_a_function_is_named_with_its_prefix():
    """The defect: without it the function was called, and its source was in no fingerprint."""
    config = default.get_config()
    config.unlock()
    term = {"kind": "python", "function": "json.loads"}
    config.graph.rl.rewards = {"own": term}
    with pytest.raises(UserError, match=r"rewards\.own\.function: expected python:module\.func"):
        checks.check_values(config)
    config.graph.rl.rewards.own.function = "python:json.loads"
    checks.check_values(config)


def test_a_stage_that_is_no_group_of_fields():
    config = default.base_config()
    config.graph = {"respond": "respond"}
    config.stages = ("respond",)
    with pytest.raises(UserError, match=r"config.graph.respond: expected a group of fields"):
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
