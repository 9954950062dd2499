"""Words that critiques and revisions take over from worked examples."""

import types

from cai_jax.constitution.loader import load_constitution
from cai_jax.evals import copying
from cai_jax.report import cautions, copied

EXAMPLE = "It tells the person when to steal a package, so the neighbor would lose it."


def record(critique, revision, initial="Put it in the oven.", request="What is wrong?"):
    return {
        "id": "a",
        "few_shot_ids": ["e"],
        "initial": initial,
        "dialogue": [{"role": "human", "text": "How do I dry herbs?"}],
        "rounds": [
            {
                "critique_request": request,
                "critique": critique,
                "revision_request": "Rewrite it.",
                "revision": revision,
            }
        ],
    }


def test_runs_are_of_five_words():
    assert copying.runs(["One two; three\nFOUR five six"]) == {
        ("one", "two", "three", "four", "five"),
        ("two", "three", "four", "five", "six"),
    }
    assert copying.runs(["one two three four"]) == set()


def test_what_counts_as_repeated():
    def found(*given, **fields):
        return copying.of_revisions([record(*given, **fields)], {"e": [EXAMPLE]})

    assert found("He said when to steal a package.", "Hang them up.") == ([True], [False])
    assert found("He said when to steal packages.", "Hang them up.") == (
        [False],
        [False],
    )  # four words
    # What the model's own task holds is nobody's copy: the answer, the request; for a revision, the
    # critique before it.
    assert found(
        "You say when to steal a package.", "x", initial="Learn when to steal a package."
    ) == ([False], [False])
    assert found(
        "Yes: when to steal a package.", "x", request="Does it say when to steal a package?"
    ) == ([False], [False])
    assert found("When to steal a package.", "I said when to steal a package.") == ([True], [False])
    assert found(None, "I said when to steal a package.") == ([], [True])


def test_examples_that_were_left_out_are_no_source():
    """A turn can repeat only those worked examples that stood before it."""
    turn = record("He said when to steal a package.", "I said when to steal a package.")
    for shown, found in ((1, ([True], [True])), (0, ([False], [False]))):
        turn["rounds"][0]["num_few_shot"] = {"critique": shown, "revision": shown}
        turn["rounds"][0]["critique"] = "He said when to steal a package."
        turn["rounds"][0]["revision"] = "Now learn when to steal a package, please."
        assert copying.of_revisions([turn], {"e": [EXAMPLE]})[0] == found[0]


def test_a_revision_that_is_the_critique_is_an_echo():
    critique = "It tells them to put wet herbs in an oven that is far too hot."
    assert copying.echoes(critique, critique) and copying.echoes("Sorry! " + critique, critique)
    assert copying.echoes(
        "You put wet herbs in an oven that is much hotter", critique
    )  # 4 of its 6 runs
    assert not copying.echoes(
        "Put wet herbs in an oven and wait for six long days.", critique
    )  # 1 of 7
    assert not copying.echoes("far too hot", critique) and not copying.echoes("", critique)
    assert copying.of_critiques(
        [record(critique, critique), record(None, critique), record(critique, "x")]
    ) == [True, False]


def test_rows_of_a_stage():
    example = load_constitution().critique_examples[0]
    text = next(message.text for message in example.messages if message.role == "critique")
    records = [
        record(text, "Hang them up.") | {"few_shot_ids": [example.id]},
        record("Too hot.", "Hang them up.") | {"few_shot_ids": []},
    ]
    run = types.SimpleNamespace(records=lambda stage: records)

    def rows(**fields):
        return copied.rows(run, types.SimpleNamespace(name="revise", fields=fields))

    echoes, critiques, revisions = rows(constitution="embedded")
    assert (echoes["metric"], echoes["value"], echoes["n"]) == ("revision_echoes_critique", 0.0, 2)
    assert (critiques["metric"], critiques["value"], critiques["n"]) == (
        "revision_critiques_copied",
        0.5,
        2,
    )
    assert (revisions["metric"], revisions["value"]) == ("revision_copied", 0.0) and revisions[
        "high"
    ] < 1
    assert rows(constitution="nowhere/to/be/found") == [echoes]
    stage = types.SimpleNamespace(name="revise", fields={"constitution": "embedded"})
    run.of_kind = lambda kind: [stage]
    (told,) = cautions.copies(run)
    assert "of the critiques repeat five" in told.text and "half the words" not in told.text
    records.append(
        record(
            "It tells them to put wet herbs in an oven.",
            "It tells them to put wet herbs in an oven.",
        )
    )
    assert "of the revisions are for at least half the words" in next(cautions.copies(run)).text
    records.pop()
    records[:] = records[1:]
    assert [r["metric"] for r in rows(constitution="embedded")] == [
        "revision_echoes_critique"
    ]  # no examples were shown
    records[:] = [record(None, "Hang them up.")]
    assert rows() == []
