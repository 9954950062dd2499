"""Malformed input by the hundred: whatever is wrong with a file, a directory or a command line, it
ends in one line (exit code 2), or the row is left out and counted. No traceback, no hang, nothing
half-written. `python -m pytest tests/test_fuzz.py -s` tells the counts; tests/test_bad_input.py has
the cases that somebody has thought of, with what they say."""

import collections
import json
import random
import shutil
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bad_input import TINY_MODEL, assert_nothing_half_written, weights  # noqa: F401  a fixture

from cai_jax import export, main, plan, status
from cai_jax.constitution import loader
from cai_jax.data import prepare
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.data.ratings import load_ratings
from cai_jax.errors import UserError
from cai_jax.models import gguf, hf
from cai_jax.report import __main__ as report_command

LONGEST = 20  # seconds that one input may take on a busy machine
JUNK = (
    None,
    True,
    False,
    -1,
    0,
    3,
    1.5,
    10**30,
    1e308,
    float("nan"),
    "",
    " ",
    "x",
    "\n\nHuman:",
    "{}{0}{a.b}",
    "../../x",
    "é\u202e",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    ["x", 1],
    "y" * 10_000,
    "\x01",
    "<|im_end|>",
    [{}],
    {"role": "human"},
)
JUNK_BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b'"',
    b"}",
    b"[[[[",
    b"\\u",
    b"\n",
    b"{" * 5000,
    b"",
)


def fuzz(count, one):
    """Makes `count` inputs from numbers that hypothesis draws, always the same ones, and returns
    how many were refused or left out. one(draw) makes an input and returns the call to try, which
    may return what it left out."""
    seen = collections.Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def run(seed):
        call, began = one(random.Random(seed)), time.monotonic()
        try:
            dropped = call()
            seen["left out and counted" if dropped else "harmless"] += 1
        except UserError as error:
            assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 3000
            seen["one line"] += 1
        assert time.monotonic() - began < LONGEST

    run()
    print(dict(seen))
    return seen["one line"] + seen["left out and counted"]


def places(value, path=()):
    """Every path into nested JSON."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(value, draw, wanted=lambda path: True):
    """The JSON with one thing wrong: a value replaced by junk, an entry lost, a key renamed, or an
    item added."""
    value = json.loads(json.dumps(value))
    *path, key = draw.choice([path for path in places(value) if wanted(path)])
    at = value
    for part in path:
        at = at[part]
    how = draw.choice(["junk", "junk", "junk", "lose", "rename", "nest"])
    if how == "junk":
        at[key] = draw.choice(JUNK)
    elif how == "nest":
        at[key] = [{str(key): at[key]}]
    elif how == "rename" and isinstance(at, dict):
        at[f"{key}_"] = at.pop(key)
    else:
        del at[key]
    return value


def spoilt(data: bytes, draw) -> bytes:
    """The bytes cut, with something put in, or with something else in their place."""
    start = draw.randrange(len(data))
    how = draw.choice(["cut", "insert", "replace", "lose"])
    if how == "cut":
        return data[:start]
    stop = start + draw.randrange(1, 30)
    return (
        data[:start]
        + (b"" if how == "lose" else draw.choice(JUNK_BYTES))
        + data[start if how == "insert" else stop :]
    )


def file_of(path, value, draw, wanted=lambda path: True):
    """Writes JSON with one thing wrong in it, or wrong as JSON."""
    text = json.dumps(mutated(value, draw, wanted) if draw.random() < 0.7 else value)
    path.write_bytes(text.encode() if draw.random() < 0.8 else spoilt(text.encode(), draw))
    return str(path)


# ---- Rows ----------------------------------------------------------------------------------------

TALK = [{"role": "system", "text": "Be brief."}, {"role": "human", "text": "Why?"}]
PAIR = {"id": "a", "dialogue": TALK, "chosen": "So.", "rejected": "No."}
WHOLE = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
RATED = {"id": "a", "dialogue": [*TALK, {"role": "assistant", "text": "So."}], "rating": 3.0}


@pytest.mark.parametrize(
    "rows,load,count",
    [
        ([{"prompt": "Why?"}, {"prompt": TALK, "id": "b", "kind": "x"}], read_prompts, 120),
        ([PAIR], load_comparisons, 90),
        ([WHOLE], load_comparisons, 60),
        ([RATED], load_ratings, 80),
    ],
)
def test_rows(tmp_path, rows, load, count):
    def one(draw):
        lines = [json.dumps(row).encode() for row in rows] + [
            json.dumps(mutated(draw.choice(rows), draw)).encode()
        ]
        lines = [spoilt(line, draw) if draw.random() < 0.3 else line for line in lines]
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"\n".join(lines) + b"\n")
        return lambda: load(str(path))[1]

    assert fuzz(count, one) >= count // 2


# ---- Models, tokenizers, principles --------------------------------------------------------------


def test_model_directories(tmp_path, weights):  # noqa: F811
    shutil.copytree(weights, tmp_path / "model")
    tensors, config = (tmp_path / "model" / name for name in ("model.safetensors", "config.json"))
    data, fields = tensors.read_bytes(), json.loads(config.read_text())
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])

    def one(draw):
        tensors.write_bytes(data)
        config.write_text(json.dumps(fields))
        if draw.random() < 0.5:
            file_of(config, fields, draw)
        elif draw.random() < 0.5:
            head = json.dumps(mutated(header, draw)).encode()
            tensors.write_bytes(len(head).to_bytes(8, "little") + head + data[length:])
        else:
            tensors.write_bytes(spoilt(data[:length], draw) + data[length:])
        return lambda: hf.load_hf(tmp_path / "model") and None

    assert fuzz(80, one) >= 40


def test_tokenizers(tmp_path):
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    names = [path.name for path in TINY_MODEL.glob("*.json") if path.name != "config.json"]

    def one(draw):
        for name in names:
            shutil.copyfile(TINY_MODEL / name, tmp_path / "model" / name)
        name = draw.choice(names)
        value = json.loads((TINY_MODEL / name).read_text())
        file_of(tmp_path / "model" / name, value, draw, lambda path: len(path) < 3)
        return lambda: load_format(tmp_path / "model").tokenizer.encode("Hello.") and None

    assert fuzz(60, one) >= 15


def test_principle_files(tmp_path):
    value = json.loads(loader.EMBEDDED.joinpath("principles.json").read_text())
    value |= json.loads(loader.EMBEDDED.joinpath("examples.json").read_text())

    def one(draw):
        file_of(tmp_path / "mine.json", value, draw)
        return lambda: loader.load_constitution(str(tmp_path / "mine.json")) and None

    assert fuzz(80, one) >= 40


# ---- Configs and command lines -------------------------------------------------------------------

VALUES = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "1e400",
    "None",
    "True",
    "[]",
    "(1,2",
    "{}",
    "@sl",
    "@",
    "'",
    "\t",
    "../..",
    "a=b",
    "١",
    "\ud7ff",
    "9" * 40,
)
FIELDS = (
    "graph.respond.num_samples",
    "graph.respond.temperature",
    "graph.respond.prompts.source",
    "graph.respond.prompts.limit",
    "graph.respond.top_p",
    "graph.respond.kind",
    "graph.respond.max_new_tokens",
    "graph.sl.learning_rate",
    "graph.pm.clamp",
    "graph.sl.batch_size",
    "graph.rl.clip",
    "graph.sl.adapters.rank",
    "graph.sl.adapters.base_dtype",
    "mesh.data",
    "model.dtype",
    "model.remat",
    "models.base",
    "models.helpful",
    "seed",
    "stages",
    "sampling.batch_size",
    "on_change",
    "graph",
    "nothing",
    "graph.nothing.x",
    "",
    ".",
    "graph..kind",
    "mesh.data.x",
)


def told(capsys, call, *arguments):
    """What a command says, as the error that it ends in; None where it does what it was asked."""
    try:
        code = call(["x", *arguments]) if call not in BARE else call(list(arguments))
    except SystemExit as error:
        code = error.code
    errors = capsys.readouterr().err
    if code == 0 or code is None:
        return
    lines = [
        line for line in errors.splitlines() if line.strip() and not line.startswith("warning: ")
    ]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (
        arguments,
        code,
        errors,
    )
    raise UserError(lines[0])


def test_flags(tmp_path, capsys):
    """Flags of a run that cannot begin: its model is not there, so that harmless ones are refused
    as well."""

    def one(draw):
        flags = [
            draw.choice(["--config.", "--config.", "--", "-", ""])
            + f"{draw.choice(FIELDS)}={draw.choice(VALUES)}"
            for _ in range(draw.randrange(1, 3))
        ]
        flags += [
            "--config=configs/tiny.py",
            f"--workdir={tmp_path / 'run'}",
            f"--config.models.base={tmp_path / 'absent'}",
            "--config.stages=respond",
        ]
        return lambda: told(capsys, main.main, *draw.sample(flags, len(flags)))

    assert fuzz(60, one) >= 55
    assert_nothing_half_written(tmp_path / "run")


TEXTS = (
    "get_config = 3",
    "def get_config():\n    return None",
    "def get_config(:",
    "import nothing_of_this_name",
    "1 / 0",
    "",
    "def get_config():\n    return {'stages': ['x']}",
    "raise SystemExit(3)",
    "def get_config(x, y):\n    pass",
    (
        "from configs import tiny\ndef get_config():\n    c = tiny.get_config()\n    c.FIELD = "
        "VALUE\n    return c"
    ),
)


def test_config_files(tmp_path, capsys):
    def one(draw):
        field = draw.choice(
            [
                "stages",
                "graph",
                "seed",
                "mesh",
                "models",
                "graph.respond",
                "new",
                "sampling",
                "graph.sl.kind",
            ]
        )
        value = repr(draw.choice([item for item in JUNK if item == item]))
        text = (
            draw.choice(TEXTS[:-1])
            if draw.random() < 0.4
            else TEXTS[-1].replace("FIELD", field).replace("VALUE", value)
        )
        (tmp_path / "mine.py").write_text(text)
        return lambda: told(
            capsys,
            main.main,
            f"--config={tmp_path / 'mine.py'}",
            f"--workdir={tmp_path / 'run'}",
            f"--config.models.base={tmp_path / 'absent'}",
            "--config.stages=respond",
        )

    assert fuzz(40, one) >= 35
    assert_nothing_half_written(tmp_path / "run")


BARE = (prepare.main, gguf.main)  # these are given no name of a program
WORDS = (
    "--workdir=",
    "--what=pm",
    "--what=",
    "--to=",
    "--out",
    "--out=x\0y",
    "--gguf",
    "--gguf=absent",
    "--wheel=pytest",
    "--slices=x",
    "--topology=v9:1",
    "--topology",
    "--config=absent.py",
    "--config=configs/tiny.py",
    "--manual_dir=absent",
    "cai_run",
    "cai_evals/x",
    "nothing",
    "--nothing",
    "-",
    "--",
    "absent/run",
    "--only=(",
    "--dtype=int3",
    "",
    "\t",
    "--shard_gigabytes=-1",
    "--quick",
)
COMMANDS = (export.main, report_command.main, status.main, plan.main, prepare.main, gguf.main)


@pytest.mark.parametrize("call", COMMANDS, ids=lambda call: call.__module__)
def test_command_lines(tmp_path, capsys, monkeypatch, call):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))

    def one(draw):
        words = [
            draw.choice(WORDS).replace("absent", str(tmp_path / "absent"))
            for _ in range(draw.randrange(4))
        ]
        return lambda: told(capsys, call, *words)

    assert fuzz(25, one) >= 20
    assert not any(tmp_path.iterdir())
