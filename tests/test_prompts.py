"""Prompts: what each source gives, what is dropped, what each mistake prints; and the embedded
sets."""

import collections
import gzip
import itertools
import json
import re

import pytest

from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.evals import load_choices
from cai_jax.data.prompts import SETS, Prompt, read_prompts, stable_id
from cai_jax.errors import UserError
from cai_jax.structs import Message

TURNS = [
    {"role": "human", "text": "Hi"},
    {"role": "assistant", "text": "Hello."},
    {"role": "human", "text": "Name a tree."},
]
HARMS = {
    "violence",
    "self-harm",
    "hate and discrimination",
    "harassment and bullying",
    "theft and fraud",
    "drugs and weapons",
    "privacy invasion",
    "deception and misinformation",
    "unsafe advice",
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_texts_and_dialogues_ids_and_dropped_rows(tmp_path):
    rows = [
        {"prompt": " Name a tree: oak? "},
        {"prompt": TURNS, "id": "tree", "kind": "botany"},
        {"prompt": " "},
        {"prompt": "Name a tree: oak?"},
        {"prompt": [{"role": "human", "text": ""}]},
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant:"},
    ]
    prompts, dropped = read_prompts(write(tmp_path / "a.jsonl", *rows))
    assert dropped == {"blank prompt": 2, "duplicate": 1}
    assert [prompt.dialogue[-1].text for prompt in prompts] == [
        "Name a tree: oak?",
        "Name a tree.",
        "Bye",
    ]
    assert prompts[1].id == "tree" and prompts[1].kind == "botany" and len(prompts[1].dialogue) == 3
    assert prompts[2].dialogue[1] == Message("assistant", "Hello.")
    assert (
        prompts[0].id == stable_id((Message("human", "Name a tree: oak?"),))
        and prompts[0].kind is None
    )
    assert re.fullmatch("[0-9a-f]{16}", prompts[0].id)


def test_gzip_and_parquet_give_the_same_as_jsonl(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": f"Question {number}?", "split": "train" if number % 2 else "heldout"}
        for number in range(10)
    ]
    plain = write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = read_prompts(plain, split="train", offset=1, limit=3)[0]
    assert [prompt.dialogue[0].text for prompt in expected] == [
        f"Question {number}?" for number in (3, 5, 7)
    ]
    for name in ("a.jsonl.gz", "a.parquet"):
        assert read_prompts(str(tmp_path / name), split="train", offset=1, limit=3)[0] == expected


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"text": "a"}, "2: field 'prompt': missing"),
        ({"prompt": 3}, "2: field 'prompt': expected text or a list of {role, content}, got int"),
        ({"prompt": TURNS[:2]}, "2: field 'prompt': ends in 'assistant'"),
        (
            {"prompt": [{"role": "tool", "text": "a"}]},
            r"2: field 'prompt'\[0\]: expected {role, content} with a role among user, human",
        ),
        ({"prompt": "a", "id": "first"}, "2: field 'id': 'first' was there before"),
        ({"prompt": "a", "kind": [1]}, "2: field 'kind': expected text"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_field(tmp_path, row, expected):
    path = write(tmp_path / "bad.jsonl", {"prompt": "fine", "id": "first"}, row)
    with pytest.raises(UserError, match=expected) as error:
        read_prompts(path)[0]
    assert str(error.value).startswith(path)


def test_nothing_left_and_unknown_sources(tmp_path):
    path = write(
        tmp_path / "a.jsonl", {"prompt": "a", "split": "train"}, {"prompt": " ", "split": "train"}
    )
    for options in ({"split": "test"}, {"offset": 5}, {"limit": 0}):
        with pytest.raises(UserError, match="0 rows left"):
            read_prompts(path, **options)[0]
    with pytest.raises(UserError, match="embedded:red_team and embedded:helpful"):
        read_prompts("embedded:harmful")[0]
    with pytest.raises(UserError, match="unknown kind of data"):
        read_prompts("prompts.tsv")[0]
    with pytest.raises(UserError, match="no such file"):
        read_prompts(str(tmp_path / "absent.jsonl"))[0]


def test_several_sources_are_read_one_after_the_other(tmp_path):
    first = write(tmp_path / "a.jsonl", *({"prompt": f"Question {number}?"} for number in range(4)))
    second = write(
        tmp_path / "b.jsonl",
        {"prompt": "Question 1?", "id": "x"},
        {"prompt": "Name a tree.", "id": "y"},
    )
    prompts, dropped = read_prompts(f"{first} + {second}", limit=2)
    assert [prompt.dialogue[0].text for prompt in prompts] == [
        "Question 0?",
        "Question 1?",
        "Name a tree.",
    ]
    assert dropped == {"duplicate": 1}
    third = write(tmp_path / "c.jsonl", {"prompt": "Name a river.", "id": "y"})
    with pytest.raises(UserError, match="id 'y' names different prompts"):
        read_prompts(f"{second}+{third}")[0]
    assert {
        prompt.kind in HARMS for prompt in read_prompts("embedded:red_team+embedded:helpful")[0]
    } == {True, False}


def test_tfds_rows_become_prompts(monkeypatch):
    values = [
        {"prompt": "Name a tree."},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "x"},
    ]
    seen = []

    def read(name, directory, split):
        seen.append((name, split))
        return enumerate(values, start=1)

    monkeypatch.setattr("cai_jax.data.rows._tfds", read)
    prompts = read_prompts("tfds:some_set/config", split="test")[0]
    assert seen == [("some_set/config", "test")]
    assert [prompt.dialogue for prompt in prompts] == [
        (Message("human", "Name a tree."),),
        (Message("human", "Hi"),),
    ]


def test_public_files(shared_data):
    prompts, dropped = read_prompts(str(shared_data / "redteam_hh_harmless_first_turns.jsonl.gz"))
    assert len(prompts) + sum(dropped.values()) == 11952 and len(prompts) > 10000
    prompts, dropped = read_prompts(str(shared_data / "hh_harmless_base.jsonl.gz"))
    assert len(prompts) + sum(dropped.values()) == 1718 and all(
        item.dialogue[-1].role == "human" for item in prompts
    )


# The embedded sets


@pytest.fixture(scope="module", params=SETS)
def embedded(request):
    name = request.param
    prompts, dropped = read_prompts(f"embedded:{name}")
    assert dropped == {}
    return (
        name,
        prompts,
        *(read_prompts(f"embedded:{name}", split=split)[0] for split in ("train", "heldout")),
    )


def words(prompt):
    return re.findall(r"[\w']+", " ".join(message.text for message in prompt.dialogue).lower())


def test_counts_ids_and_splits(embedded):
    name, prompts, train, heldout = embedded
    assert len(prompts) >= 240 and len(train) + len(heldout) == len(prompts)
    assert [prompt.id for prompt in prompts] == [
        f"{name}-{number:03d}" for number in range(1, len(prompts) + 1)
    ]
    assert 0.2 <= len(heldout) / len(prompts) <= 0.3
    by_kind = collections.Counter(prompt.kind for prompt in prompts)
    held = collections.Counter(prompt.kind for prompt in heldout)
    if name == "red_team":
        assert set(by_kind) == HARMS and min(by_kind.values()) >= 26
    assert len(by_kind) >= 9 and min(by_kind.values()) >= 12
    assert all(0.15 <= held[kind] / count <= 0.35 for kind, count in by_kind.items())
    # a run that takes the first few of a split sees many kinds
    assert (
        len({prompt.kind for prompt in train[:32]}) >= 9
        and len({prompt.kind for prompt in heldout[:16]}) >= 8
    )


def test_prompts_are_short_varied_and_partly_of_several_turns(embedded):
    _, prompts, _, _ = embedded
    lengths = [len(words(prompt)) for prompt in prompts]
    assert sum(length <= 40 for length in lengths) >= 0.9 * len(prompts) and max(lengths) <= 90
    assert sum(len(prompt.dialogue) > 1 for prompt in prompts) >= 12
    openings = collections.Counter(tuple(words(prompt)[:3]) for prompt in prompts)
    assert openings.most_common(1)[0][1] <= 0.05 * len(prompts)
    for prompt in prompts:
        roles = [message.role for message in prompt.dialogue]
        assert roles == ["human", "assistant"] * (len(roles) // 2) + ["human"]


def test_no_two_prompts_are_nearly_the_same():
    bags = [
        (prompt.id, frozenset(words(prompt)))
        for name in SETS
        for prompt in read_prompts(f"embedded:{name}")[0]
    ]
    near = [
        (a, b)
        for (a, left), (b, right) in itertools.combinations(bags, 2)
        if len(left & right) > 0.6 * len(left | right)
    ]
    assert near == []


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_of_a_chat_the_last_human_turn_is_what_is_answered(tmp_path, key):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": "Oak."},
    ]
    path = write(tmp_path / "a.jsonl", {key: turns}, {key: turns[:1]}, {key: turns[:2]})
    prompts, dropped = read_prompts(path)
    assert [[m.role for m in p.dialogue] for p in prompts] == [
        ["system", "human", "assistant", "human"],
        ["system", "human"],
    ]
    assert prompts[0].dialogue[-1].text == "Name a tree." and dropped == {"no human turn": 1}


def test_a_file_without_a_split_is_the_split_train_and_no_other(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "one"}, {"prompt": "two", "id": 7})
    assert [p.id for p in read_prompts(path, split="train")[0]][1] == "7"
    with pytest.raises(UserError, match=r"no split 'heldout'.*no field 'split'.*\[9/10\] here"):
        read_prompts(path, split="heldout", max_bad_rows=5)[0]
    path = write(tmp_path / "b.jsonl", {"prompt": "one", "split": "test"}, {"prompt": "two"})
    with pytest.raises(UserError, match=r"b.jsonl:2: field 'split': missing"):
        read_prompts(path, split="train")[0]
    with pytest.raises(
        UserError, match=r"0 rows left: 0 prompts of split 'train' \(there are test\)"
    ):
        read_prompts(
            write(tmp_path / "c.jsonl", {"prompt": "one", "split": "test"}), split="train"
        )[0]


def test_the_real_fault_is_named_with_the_column_to_take(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "Why?", "answer": "So."})
    with pytest.raises(UserError) as error:
        read_prompts(path, split="train")[0]
    assert str(error.value).endswith(
        "a.jsonl:1: field 'prompt': missing; fields: question, answer; name the column that "
        f"has it: {path}#prompt=question"
    )


def test_a_json_array_is_a_table_too(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": "Why?"}, {"instruction": "Who?"}, 3], indent=1))
    source = f"{path}#prompt=instruction"
    assert len(read_prompts(source, max_bad_rows=1)[0]) == 2
    with pytest.raises(UserError, match=r"a.json:3: expected a JSON object"):
        read_prompts(source)[0]


def test_sources_joined_by_plus_come_one_after_the_other(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    second.write_text('{"prompt": "two"}\n{"prompt": "three"}\n{"prompt": "four"}\n')
    kept, dropped = read_prompts(f"{first}+{second}", limit=2)
    assert [prompt.dialogue[0].text for prompt in kept] == ["one", "two", "three"]
    assert dropped == {"duplicate": 1}


def test_prompts_are_disjoint_from_the_embedded_comparisons_and_evaluations():
    """What the policy is prompted with must not be what the preference model was trained on or is
    judged by."""
    others = [item.dialogue for item in load_comparisons("embedded:helpful_comparisons")[0]]
    others += [item.dialogues[0][:-1] for item in load_choices("embedded:hhh")]
    bags = [frozenset(words(Prompt("", dialogue[-1:]))) for dialogue in others]
    for name in SETS:
        for prompt in read_prompts(f"embedded:{name}")[0]:
            own = frozenset(words(Prompt("", prompt.dialogue[-1:])))
            assert not [bag for bag in bags if len(own & bag) > 0.6 * len(own | bag)], prompt


def test_a_file_of_a_hundred_thousand_rows(tmp_path):
    """Planes, directions and combining marks of all kinds; a mistake in its last line is named by
    that line."""
    letters = [
        "é",
        "e\u0301",
        "ש",
        "\u202eרצע\u202c",
        "日本",
        "👩‍👩‍👧",
        "\U0010ffff",
        "\u2028",
        "ﬃ",
        "\x7f",
        "\ufeff",
    ]
    rows = [
        json.dumps({"prompt": f"Row {n} {letters[n % len(letters)]}?"}, ensure_ascii=n % 2 == 0)
        for n in range(100_000)
    ]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    prompts = read_prompts(str(path))[0]
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 100_000
    for n in (0, 3, 6, 7, 9, 10, 99_999):
        assert prompts[n].dialogue[-1].text == f"Row {n} {letters[n % len(letters)]}?"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"prompt": 1}\n')
    with pytest.raises(UserError, match=r"many\.jsonl:100001: field 'prompt'"):
        read_prompts(str(path))[0]
    assert len(read_prompts(str(path), offset=99_998, limit=2)[0]) == 2  # reading ends at the limit
