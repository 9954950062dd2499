"""Every command explains itself, and each works on an odd machine or says in one line what is
wrong."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from cai_jax import errors, main, plan
from cai_jax.configuration import command_line
from cai_jax.errors import UserError
from tests.chaos import harness

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = (
    *("main", "results", "export", "plan", "status", "batch", "serve"),
    *("report.__main__", "data.prepare", "data.published", "models.gguf"),
    *(
        "microworld.files",
        "microworld.pretrain",
        "microworld.score",
        "microworld.rated",
        "microworld.figures",
        "microworld.measure",
    ),
)


def arguments_of(name: str, *arguments) -> list[str]:
    return [*([] if name.startswith("microworld.") else [name]), *arguments]


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name, capsys):
    command = importlib.import_module(f"cai_jax.{name}").main
    try:
        assert command(arguments_of(name, "--help")) == 0
    except SystemExit as left:
        assert left.code == 0
    out = capsys.readouterr()
    assert "usage" in out.out and out.err == ""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "microworld.files"])
def test_an_unknown_flag_is_one_line(name, capsys):
    command = importlib.import_module(f"cai_jax.{name}").main
    assert command(arguments_of(name, "--no-such-flag")) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err


def test_every_module_that_is_a_command_is_tested():
    found = {
        ".".join(path.relative_to(ROOT / "cai_jax").with_suffix("").parts)
        for path in (ROOT / "cai_jax").rglob("*.py")
        if "sys.exit(main())" in path.read_text(encoding="utf-8")
    }
    assert found | {"main"} == set(COMMANDS)


def test_quick_needs_no_value():
    for given in (["--quick"], ["--quick=yes"], ["--quick", "yes"]):
        options, left = plan.read_options(["plan", *given, "--config=tiny"])
        assert options.quick == "yes" and left == ["--config=tiny"]
    assert plan.read_options(["plan", "--config=tiny", "--quick"])[0].quick == "yes"
    assert plan.read_options(["plan", "--quick=no"])[0].quick == "no"
    with pytest.raises(UserError, match="invalid choice"):
        plan.read_options(["plan", "--quick=maybe"])


@pytest.mark.parametrize(
    "message,expected",
    [
        ("No module named 'configs'", "No module named 'configs'"),
        ("'a key'", "a key"),
        ("  two\n lines ", "two lines"),
    ],
)
def test_quotes_are_not_cut_in_half(message, expected):
    assert command_line.explain(message) == expected


def wrapped(error):
    @errors.command
    def fails():
        raise error

    return fails


@pytest.mark.parametrize(
    "error,message",
    [
        (OSError(28, "No space left on device", "out/model"), "out/model: No space left on device"),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (UserError("a\nb"), "a b"),
    ],
)
def test_what_the_system_refuses_is_one_line(capsys, error, message):
    assert wrapped(error)() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_faults_of_our_own_stay_tracebacks():
    for error in (AssertionError(), RuntimeError("backend"), ValueError("x")):
        with pytest.raises(type(error)):
            wrapped(error)()


SCRIPT = """
import sys
from cai_jax.errors import command
@command
def main():
    for _ in range(20000):
        print("\\u2192 a line")
sys.exit(main())
"""


def script(text, **options):
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stderr=subprocess.PIPE, **options
    )


def test_a_reader_that_has_gone_is_no_traceback():
    process = script(SCRIPT, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == errors.EXIT_PIPE


def test_an_ascii_terminal_shows_escapes():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = script(SCRIPT, stdout=subprocess.PIPE, env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b"" and out.startswith(b"\\u2192 a line")


def test_a_workdir_that_is_not_utf8_is_refused(capsys):
    workdir = os.fsdecode(b"run-\xff")
    assert main.main(["cai_jax", "--config=tiny", f"--workdir={workdir}"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


# One process with everything odd at once, beside an ordinary run of the same.
FLAGS = [
    "--config=tiny", "--config.stages=respond", "--config.graph.respond.prompts.limit=2",
    "--config.graph.respond.max_new_tokens=2", "--config.sampling.batch_size=2",
]  # fmt: skip
ODD = {
    "PATH": "/nonexistent",  # no git
    "PYTHONPATH": str(ROOT),
    "HOME": "/proc/none",  # cannot be written
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}


def test_an_odd_machine_computes_the_same(tmp_path):
    read, write = os.pipe()
    os.close(read)  # `… | head`, whose reader has gone before the first line
    odd = script(
        (
            f"import sys\nfrom cai_jax.main import main\nsys.exit(main(['x', *{FLAGS!r}, "
            "'--workdir=odd']))"
        ).replace("--workdir=odd", f"--workdir={tmp_path / 'odd'}"),
        stdout=write,
        env={name: value for name, value in harness.environment().items() if "CACHE" in name} | ODD,
    )
    os.close(write)
    assert main.main(["x", *FLAGS, f"--workdir={tmp_path / 'plain'}"]) == 0
    err = odd.communicate(timeout=240)[1].decode()
    assert odd.returncode == 0, err
    assert "JAX_ENABLE_X64=True is not used here" in err and "Traceback" not in err
    plain, other = (
        (tmp_path / name / "respond" / "records.jsonl").read_bytes() for name in ("plain", "odd")
    )
    assert plain == other


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "cai_jax.main", *FLAGS, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if process.returncode == 0:
        pytest.skip("there is a GPU here")
    assert process.returncode == 2 and not (tmp_path / "run").exists()
    assert process.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=cuda: ")
    assert "Traceback" not in process.stderr
