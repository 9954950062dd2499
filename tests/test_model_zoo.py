"""The zoo: every preset is a graph that the command takes, and docs/models.md has every family
and preset."""

import pathlib
import re

import pytest

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.models.families import FAMILIES
from cai_jax.pipeline import graph as pipeline
from configs.models import zoo

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", zoo.MODELS)
def test_presets(name):
    config, workdir = main.parse(
        ["cai_jax", f"--config={ROOT}/configs/models/zoo.py:{name}", "--workdir=runs/x"]
    )
    nodes = pipeline.build_graph(config)
    for stage in ("sl", "pm", "rl"):
        assert nodes[stage].fields["adapters"] == {"rank": 16, "alpha": 16.0, "targets": ["all"]}
    assert workdir == "runs/x" and all(
        re.fullmatch(r"[\w-]+/[\w.-]+", reference) for reference in zoo.MODELS[name]
    )


def test_an_unknown_preset_is_one_line():
    with pytest.raises(UserError, match="'gpt5' is not in the zoo; it has smollm2_135m") as caught:
        main.parse(["cai_jax", f"--config={ROOT}/configs/models/zoo.py:gpt5"])
    assert "\n" not in str(caught.value)


def test_the_page_of_models_has_every_family_and_preset():
    table = (ROOT / "docs" / "models.md").read_text()
    for family in FAMILIES:
        assert f"`{family}`" in table, family
    for name in zoo.MODELS:
        assert f"`{name}`" in table, name
