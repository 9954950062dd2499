"""Human comparisons: the embedded set's quality, hh-rlhf's oddities counted, every file kind,
one-line errors."""

import collections
import difflib
import gzip
import json
import re

import pytest

from cai_jax.data.chats import EMPTY, ODD, OPEN, split_turns
from cai_jax.data.comparisons import DIFFERENT, EQUAL, load_comparisons
from cai_jax.data.evals import load_choices
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError
from cai_jax.structs import Message

GOOD = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
    "rejected": "\n\nHuman: Hi\n\nAssistant: What?",
}


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def embedded():
    return load_comparisons("embedded:helpful_comparisons")[0]


def test_embedded_counts_and_splits(embedded):
    assert len(embedded) >= 170
    train = load_comparisons("embedded:helpful_comparisons", split="train")[0]
    heldout = load_comparisons("embedded:helpful_comparisons", split="heldout")[0]
    assert {i.id for i in train} | {i.id for i in heldout} == {i.id for i in embedded}
    assert len(train) >= 130 and 0.2 <= len(heldout) / len(embedded) <= 0.3
    assert not {i.dialogue for i in train} & {i.dialogue for i in heldout}
    assert sum(len(item.dialogue) > 1 for item in embedded) >= 10  # several turns


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_embedded_length_does_not_give_the_answer_away(split):
    items = load_comparisons("embedded:helpful_comparisons", split=split)[0]
    longer = sum(len(i.chosen) > len(i.rejected) for i in items) / len(items)
    assert 0.50 <= longer <= 0.58
    mean = [
        sum(len(getattr(i, side)) for i in items) / len(items) for side in ("chosen", "rejected")
    ]
    assert 0.85 <= mean[0] / mean[1] <= 1.2


def test_embedded_texts_are_short_clean_and_distinct(embedded):
    for item in embedded:
        for text in (item.chosen, item.rejected, *(m.text for m in item.dialogue)):
            assert len(text.split()) <= 45 and text == text.strip() and "\n\nHuman:" not in text, (
                item.id
            )
        assert item.dialogue[-1].role == "human" and item.chosen != item.rejected
    asked = [" ".join(m.text for m in item.dialogue) for item in embedded]
    assert len(set(asked)) == len(asked)
    alike = near_duplicates(asked)
    assert not alike, alike


def near_duplicates(texts, others=None, threshold=0.8):
    """Pairs of texts that share most of their words in order; word sets are compared first because
    they are cheap."""
    words = [re.findall(r"[\w']+", text.lower()) for text in texts]
    second = words if others is None else [re.findall(r"[\w']+", text.lower()) for text in others]
    found = []
    for i, a in enumerate(words):
        for j, b in enumerate(second[:i] if others is None else second):
            if len(set(a) & set(b)) >= threshold * max(len(set(a)), len(set(b))):
                if difflib.SequenceMatcher(None, a, b).ratio() >= threshold:
                    found.append((texts[i], (others or texts)[j]))
    return found


def test_embedded_sets_do_not_share_prompts(embedded):
    """What a policy is asked, what a preference model learns from, and what both are evaluated on
    are apart."""
    asked = [item.dialogue[0].text for item in embedded]
    evaluated = [item.dialogues[0][0].text for item in load_choices("embedded:hhh")]
    prompts = [
        p.dialogue[0].text
        for name in ("helpful", "red_team")
        for p in read_prompts(f"embedded:{name}")[0]
    ]
    assert (
        not near_duplicates(asked, prompts)
        + near_duplicates(evaluated, prompts)
        + near_duplicates(evaluated, asked)
    )


def test_hh_rlhf_pairs_and_every_reason_to_drop_one(tmp_path):
    human, answer = "\n\nHuman: ", "\n\nAssistant: "
    rows = [
        GOOD,
        {"chosen": GOOD["chosen"], "rejected": GOOD["chosen"]},
        {"chosen": GOOD["chosen"], "rejected": GOOD["chosen"] + " "},  # equal but for white space
        {"chosen": GOOD["chosen"], "rejected": f"{human}Ho{answer}What?"},
        {"chosen": GOOD["chosen"] + human + "Bye", "rejected": GOOD["rejected"] + human + "Bye"},
        {
            "chosen": f"{human}Hi{human}again{answer}Yes",
            "rejected": f"{human}Hi{human}again{answer}No",
        },
        {"chosen": f"Once.{human}Hi{answer}Yes", "rejected": f"Once.{human}Hi{answer}No"},
        {"chosen": f"{human}Hi{answer}", "rejected": GOOD["rejected"]},
        {"chosen": " ", "rejected": GOOD["rejected"]},
        {"chosen": "no headings", "rejected": GOOD["rejected"]},
        {
            "chosen": f"{human}a: b{answer}c{human}d{answer}e",
            "rejected": f"{human}a: b{answer}c{human}d{answer}f\n\ng",
        },
    ]
    kept, dropped = load_comparisons(write(tmp_path / "pairs.jsonl", rows))
    assert dropped == {EQUAL: 2, DIFFERENT: 1, OPEN: 2, ODD: 2, EMPTY: 2}
    assert [(i.id, i.chosen, i.rejected) for i in kept] == [
        ("pairs:1", "Hello!", "What?"),
        ("pairs:11", "e", "f\n\ng"),
    ]
    assert kept[1].dialogue == (
        Message("human", "a: b"),
        Message("assistant", "c"),
        Message("human", "d"),
    )


HI = [{"role": "user", "content": "Hi?"}]
BRIEF = {"role": "system", "content": "Be brief."}


def said(text, role="assistant"):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "Go."},
        {"prompt": HI, "chosen": said("Hello."), "rejected": said("Go.")},
        {"prompt": HI, "chosen": said("Hello.")[0], "rejected": "Go."},
        {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Hello.", "rejected": " Go."},
        {
            "prompt": "\n\nHuman: Hi?\n\nAssistant:",
            "chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: Go.",
        },
        {"prompt": "Hi?", "chosen": HI + said("Hello."), "rejected": HI + said("Go.")},
        {"chosen": HI + said("Hello.", "GPT"), "rejected": HI + said("Go.", "bot")},
        {
            "chosen": [{"from": "prompter", "value": "Hi?"}, {"from": "model", "value": "Hello."}],
            "rejected": [{"from": "Human", "value": "Hi?"}, {"from": "gpt", "value": "Go."}],
        },
        {"dialogue": HI, "chosen": "Hello.", "rejected": "Go.", "prompt": None, "id": None},
        {"dialogue": "Hi?", "chosen": said("Hello."), "rejected": said("Go.")},
        {"chosen": [BRIEF, *HI, *said("Hello.")], "rejected": [BRIEF, *HI, *said("Go.")]},
        {"prompt": [BRIEF, *HI], "chosen": said("Hello."), "rejected": said("Go.")},
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}],
            "chosen": "Hello.",
            "rejected": "Go.",
        },
    ],
)
def test_pairs_in_the_forms_in_which_they_are_published(tmp_path, row):
    """hh-rlhf, TRL's explicit prompt as text and as chat, full-hh-rlhf, UltraFeedback, ShareGPT's
    names, system turns."""
    (item,), dropped = load_comparisons(write(tmp_path / "pairs.jsonl", [row]))
    *system, asked = item.dialogue
    assert (asked, item.chosen, item.rejected) == (Message("human", "Hi?"), "Hello.", "Go.")
    assert tuple(system) in ((), (Message("system", "Be brief."),)) and dropped == {}
    assert bool(system) == (BRIEF in list(row["chosen"]) + list(row.get("prompt") or ()))


@pytest.mark.parametrize(
    "row",
    [
        {"dialogue": HI, "chosen": "b", "rejected": ""},
        {"prompt": "Hi?", "chosen": " ", "rejected": "c"},
        {"prompt": "", "chosen": "b", "rejected": "c"},
        {"prompt": HI, "chosen": said("b"), "rejected": said(" ")},
        {"chosen": HI + said(""), "rejected": HI + said("c")},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: b",
            "rejected": "\n\nHuman: Hi\n\nAssistant:",
        },
    ],
)
def test_an_empty_answer_is_counted_in_every_form(tmp_path, row):
    kept, dropped = load_comparisons(write(tmp_path / "pairs.jsonl", [GOOD, row]))
    assert len(kept) == 1 and dropped == {EMPTY: 1}


def test_bad_rows_are_counted_with_their_lines_where_they_are_allowed(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "pairs.jsonl"
    bad = ["not JSON", '{"chosen": null, "rejected": "x"}', '{"chosen": [{"role": "tool"}]}', "[]"]
    path.write_text("\n".join([json.dumps(GOOD), bad[0], json.dumps(GOOD), *bad[1:]]) + "\n")
    kept, dropped = load_comparisons(str(path), max_bad_rows=4)
    ((reason, count),) = dropped.items()
    assert len(kept) == 2 and count == 4
    assert reason.startswith("bad row in pairs.jsonl (lines 2, 4, 5, 6; the first: not valid JSON")
    with pytest.raises(UserError, match="pairs.jsonl:6: .* bad row 4, max_bad_rows allows 3"):
        load_comparisons(str(path), max_bad_rows=3)
    with pytest.raises(UserError, match="pairs.jsonl:2: not valid JSON.*set max_bad_rows"):
        load_comparisons(str(path))
    rows = [GOOD, {"chosen": None, "rejected": None}, GOOD]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    kept, dropped = load_comparisons(str(tmp_path / "pairs.parquet"), max_bad_rows=1)
    assert len(kept) == 2
    assert list(dropped) == [
        "bad row in pairs.parquet (line 2; the first: field 'chosen': is null)"
    ]


def test_a_missing_column_is_not_guessed_among_our_own_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a?", "winner": "b", "loser": "c"}])
    with pytest.raises(UserError, match="'chosen': missing; fields: .*#chosen=winner$"):
        load_comparisons(path)
    with pytest.raises(UserError, match="#chosen=COLUMN$"):
        load_comparisons(write(tmp_path / "b.jsonl", [{"prompt": "a?", "id": "1"}]))


def test_each_source_has_its_own_split_and_limit(tmp_path, embedded):
    """Files of the same name in two folders, as hh-rlhf's are, of which only one has a field
    'split'."""
    for folder, count in (("helpful-base", 9), ("harmless-base", 30)):
        (tmp_path / folder).mkdir()
        turns = [f"\n\nHuman: {folder} {i}\n\nAssistant: " for i in range(count)]
        rows = [{"chosen": turn + "a", "rejected": turn + "b"} for turn in turns]
        write(tmp_path / folder / "train.jsonl", rows)
    files = [f"{tmp_path}/{folder}/train.jsonl" for folder in ("helpful-base", "harmless-base")]
    kept, _ = load_comparisons(
        f"embedded:helpful_comparisons[heldout:5]+{files[0]}+{files[1]}[0-7/10:6]", split="train"
    )
    counts = collections.Counter(item.source for item in kept)
    assert counts == {"helpful_comparisons": 5, "helpful-base/train": 9, "harmless-base/train": 6}
    both = f"{files[1]}[0-7/10]", f"{files[1]}[8-9/10]"
    sides = [{item.dialogue for item in load_comparisons(side)[0]} for side in both]
    assert len(sides[0]) + len(sides[1]) == 30 and not sides[0] & sides[1]
    with pytest.raises(
        UserError, match=r"no split 'heldout': its rows have no field 'split'.*\[9/10\]"
    ):
        load_comparisons(files[0], split="heldout")


def test_other_headings_are_words():
    turns = split_turns("\n\nHuman: x\n\nCritiqueRequest: y\n\nAssistant: z")
    assert [t.role for t in turns] == ["human", "assistant"] and "CritiqueRequest" in turns[0].text


def test_same_rows_from_every_kind_of_file(tmp_path, embedded):
    import pyarrow
    import pyarrow.parquet

    ours = [
        {
            "id": f"n{i}",
            "dialogue": [{"role": "human", "text": f"q{i}"}],
            "chosen": "yes",
            "rejected": "no",
            "split": "train" if i % 2 else "test",
        }
        for i in range(5)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ours), tmp_path / "rows.parquet")
    sources = [
        write(tmp_path / "rows.jsonl", ours),
        write(tmp_path / "rows.jsonl.gz", ours),
        tmp_path / "rows.parquet",
    ]
    loaded = [load_comparisons(str(source)) for source in sources]
    assert loaded[0] == loaded[1] == loaded[2] and len(loaded[0][0]) == 5
    assert [i.id for i in load_comparisons(sources[0], split="train")[0]] == ["n1", "n3"]
    assert [i.id for i in load_comparisons(sources[0], offset=1, limit=2)[0]] == ["n1", "n2"]


@pytest.mark.parametrize(
    "text,expected",
    [
        ('{"chosen": "x"', ":2:"),
        ('{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}', "rejected"),
        ('{"chosen": 3, "rejected": "x"}', "chosen"),
        ('{"dialogue": [], "chosen": "a", "rejected": "b"}', "dialogue"),
        (
            '{"dialogue": [{"role": "assistant", "text": "a"}], "chosen": "a", "rejected": "b"}',
            "human turn last",
        ),
        (
            '{"dialogue": [{"role": "human", "text": "a"}], "chosen": "a", "rejected": null}',
            "'rejected': is null",
        ),
    ],
)
def test_malformed_rows_name_file_line_and_field(tmp_path, text, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + text + "\n")
    with pytest.raises(UserError) as error:
        load_comparisons(str(path))
    assert (
        "bad.jsonl:2" in str(error.value)
        and expected in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "source,split,expected",
    [
        ("embedded:helpful_comparisons", "no such split", "0 rows left"),
        ("embedded:nothing", None, "embedded:helpful_comparisons"),
        ("absent.jsonl", None, "no such file"),
        ("absent.parquet", None, "no such file"),
        ("rows.tsv", None, "parquet"),
    ],
)
def test_nothing_to_read(source, split, expected):
    with pytest.raises(UserError, match=expected):
        load_comparisons(source, split=split)


@pytest.mark.parametrize(
    "name,kept,dropped",
    [
        ("hh_harmless_base", 1713, {ODD: 5}),
        ("hh_helpful_base", 1674, {ODD: 11}),
        ("hh_helpful_online", 837, {EMPTY: 1, OPEN: 2}),
        ("hh_helpful_rejection_sampled", 1956, {ODD: 2}),
    ],
)
def test_public_hh_rlhf(shared_data, name, kept, dropped):
    items, counts = load_comparisons(str(shared_data / f"{name}.jsonl.gz"))
    assert (len(items), counts) == (kept, dropped)
    assert all(i.dialogue[-1].role == "human" and i.chosen != i.rejected for i in items)
    assert collections.Counter(len(i.dialogue) % 2 for i in items) == {1: kept}
