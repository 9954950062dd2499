"""Words that critiques and revisions take over from worked examples."""

import types

from cai_jax.constitution.loader import load_constitution
from cai_jax.evals import copying
from cai_jax.reporting import copied

EXAMPLE = "It tells the person when to steal a package, so the neighbor would lose it."


def record(critique, revision, initial="Put it in the oven.", request="What is wrong?"):
    return {"id": "a", "few_shot_ids": ["e"], "initial": initial, "dialogue": [{"role": "human", "text": "How do I dry herbs?"}],
            "rounds": [{"critique_request": request, "critique": critique, "revision_request": "Rewrite it.",
                        "revision": revision}]}


def test_runs_are_of_five_words():
    assert copying.runs(["One two; three\nFOUR five six"]) == {("one", "two", "three", "four", "five"),
                                                               ("two", "three", "four", "five", "six")}
    assert copying.runs(["one two three four"]) == set()


def test_what_counts_as_repeated():
    def found(*given, **fields):
        return copying.of_revisions([record(*given, **fields)], {"e": [EXAMPLE]})

    assert found("He said when to steal a package.", "Hang them up.") == ([True], [False])
    assert found("He said when to steal packages.", "Hang them up.") == ([False], [False])  # four words
    # What the model's own task holds is nobody's copy: the answer, the request; for a revision, the critique before it.
    assert found("You say when to steal a package.", "x", initial="Learn when to steal a package.") == ([False], [False])
    assert found("Yes: when to steal a package.", "x", request="Does it say when to steal a package?") == ([False], [False])
    assert found("When to steal a package.", "I said when to steal a package.") == ([True], [False])
    assert found(None, "I said when to steal a package.") == ([], [True])


def test_rows_of_a_stage():
    example = load_constitution().critique_examples[0]
    text = next(message.text for message in example.messages if message.role == "critique")
    records = [record(text, "Hang them up.") | {"few_shot_ids": [example.id]},
               record("Too hot.", "Hang them up.") | {"few_shot_ids": []}]
    run = types.SimpleNamespace(records=lambda stage: records)

    def rows(**fields):
        return copied.rows(run, types.SimpleNamespace(name="revise", fields=fields))

    critiques, revisions = rows(constitution="embedded")
    assert (critiques["metric"], critiques["value"], critiques["n"]) == ("revision_critiques_copied", 0.5, 2)
    assert (revisions["metric"], revisions["value"]) == ("revision_copied", 0.0) and revisions["high"] < 1
    assert rows(constitution="nowhere/to/be/found") == []
    records[:] = records[1:]
    assert rows(constitution="embedded") == []  # no examples were shown
