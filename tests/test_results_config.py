"""configs/results/smollm2.py: every size builds, the pieces cover it, and the judge's prompts and
pairs are nobody else's."""

import pytest

from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.pipeline import graph as pipeline
from configs.results import smollm2

JUDGE = "pm_judge"


@pytest.mark.parametrize("size", smollm2.SIZES)
def test_the_graph_builds_and_the_stages_stand_in_order(size):
    config = smollm2.get_config(f"size={size}")
    nodes = pipeline.build_graph(config)
    assert tuple(config.stages) == tuple(smollm2.Study(smollm2.SIZES[size], "x").graph()) and set(
        nodes
    ) == set(config.stages)
    for name, node in nodes.items():
        earlier = config.stages[: config.stages.index(name)]
        assert set(node.parents) <= set(earlier), (
            f"{name} runs before {set(node.parents) - set(earlier)}"
        )
    models = dict(config.graph.evaluate.models)
    assert set(models) == set(smollm2.POLICIES) and nodes["evaluate"].parents.count("pm_judge") == 1
    assert not any(
        stage.get("reward") == f"@{JUDGE}"
        for stage in config.graph.values()
        if stage.kind in ("rl", "best_of")
    ), "nothing is trained or chosen by the judge"


def test_pieces_are_the_stages_of_the_gpu_size_each_once_and_in_order():
    whole = smollm2.get_config("size=gpu").stages
    pieces = [
        smollm2.get_config(f"size=gpu,piece={number}").stages
        for number in range(1, len(smollm2.PIECES) + 1)
    ]
    assert sorted(stage for piece in pieces for stage in piece) == sorted(whole)
    nodes, done = pipeline.build_graph(smollm2.get_config("size=gpu")), set()
    for piece in pieces:
        done |= set(piece)
        assert all(set(nodes[name].parents) <= done for name in piece if name != "report")


@pytest.mark.parametrize(
    "given,told",
    [
        ("size=tpu", "expected one of cpu, gpu, smoke"),
        ("size=cpu,piece=1", "pieces 1 to"),
        ("size=gpu,piece=9", "pieces 1 to"),
        ("seed=1", "expected size="),
    ],
)
def test_mistakes_are_told(given, told):
    with pytest.raises(ValueError, match=told):
        smollm2.get_config(given)


def sources(stage) -> list[tuple]:
    """(loader, fields) of everything that a stage reads from the data files."""
    fields = stage.to_dict()
    found = [(read_prompts, value) for name, value in fields.items() if name.startswith("prompts")]
    found += [
        (load_comparisons, fields[name])
        for name in ("human", "comparisons")
        if isinstance(fields.get(name), dict)
    ]
    return [
        (read, value)
        for read, value in found
        if value["source"]
        and not value["source"].startswith("embedded:")
        and not value["source"].endswith("xstest.jsonl.gz")
    ]


def openings(found) -> set[str]:
    """The first human turns, spelt alike."""
    out = set()
    for read, fields in found:
        items, _ = read(**{**fields, "limit": None, "max_characters": None})
        out |= {
            " ".join(next(m.text for m in item.dialogue if m.role == "human").lower().split())
            for item in items
        }
    return out


def test_nobody_else_sees_the_judges_prompts_and_pairs(shared_data):
    """Whatever limits are set: by the first human turn, over all pairs and prompts that a stage
    could read."""
    config = smollm2.get_config(f"size=gpu,data={shared_data}")
    del (
        config.graph["pm_all"],
        config.graph["evaluate_all"],
    )  # more data, to see what they are worth; it judges nobody
    judge, training, held_out, seen = openings(sources(config.graph[JUDGE])), set(), set(), {}
    assert len(judge) > 1000
    for name, stage in config.graph.items():
        for read, fields in sources(stage) if name != JUDGE else ():
            key = (read.__name__, fields["source"], fields["split"])
            seen[key] = seen[key] if key in seen else openings([(read, fields)])
            assert not judge & seen[key], f"{name} reads prompts of the judge"
            (held_out if fields["split"] == smollm2.HELD_OUT else training).update(seen[key])
    assert len(training) > 1000 and len(held_out) > 1000 and not training & held_out
    assert len(seen) >= 7, "prompts and pairs of both kinds, for training and held out"


def test_what_more_data_learn_from_is_not_held_out(shared_data):
    config = smollm2.get_config(f"size=gpu,data={shared_data}")
    assert not openings(sources(config.graph.pm_all)) & openings(sources(config.graph.evaluate_all))
