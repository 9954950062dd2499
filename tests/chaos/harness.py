"""Runs a graph, disturbs it, and compares what it leaves with an undisturbed run.

A moment is counted in changes of files, not in seconds, so that it falls inside the run on any
machine.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT = 600
NUM_CHANGES = 200  # about as many moments with changed files has an undisturbed run
TRAINING_STAGES = ("sl", "pm", "rl")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A command, and the stages that it runs."""

    config: str
    flags: tuple[str, ...] = ()
    text_stages: tuple[str, ...] = ("respond", "respond_helpful", "revise", "compare", "feedback")

    @property
    def order(self) -> tuple[str, ...]:
        """As they run."""
        return (
            "respond",
            "respond_helpful",
            "revise",
            "sl",
            *self.text_stages[3:],
            "pm",
            "rl",
            "evaluate",
            "report",
        )

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self.text_stages, *TRAINING_STAGES, "evaluate", "report")


TINY = Graph(
    "tiny",
    text_stages=("respond", "respond_helpful", "revise", "compare", "feedback", "feedback_chain"),
)
STAGES, TEXT_STAGES = TINY.stages, TINY.text_stages
# A trained model that ends its answers, criticises and judges, on few prompts; a checkpoint a step.
MICROWORLD = Graph(
    "microworld",
    tuple(
        f"--config.graph.{field}"
        for field in (
            "respond.prompts.limit=40",
            "respond_helpful.prompts.limit=24",
            "revise.num_rounds=2",
            "sl.save_every_steps=1",
            "compare.prompts.limit=24",
            "compare.num_samples=2",
            "pm.human.limit=96",
            "pm.num_epochs=1",
            "pm.save_every_steps=1",
            "rl.num_updates=3",
            "rl.rollouts_per_update=32",
            "rl.num_epochs=1",
            "rl.save_every_updates=1",
            "evaluate.evals.multiple_choice.num_choices=8",
            "evaluate.evals.preference_pairs.num_choices=8",
            *(
                f"evaluate.prompts_{name}.limit=8"
                for name in ("red_team", "helpful", "look_alike", "mixed")
            ),
            "evaluate.evals.preference_pairs.comparisons.limit=24",
            "evaluate.evals.multiple_choice.num_chains=0",
        )
    ),
)
# Times differ from run to run: these are not compared.
UNCOMPARED = ("timing.jsonl", "manifest.json", "config.json")


def environment(**more) -> dict:
    """Of a command: tests/conftest.py has set where compiled programs are kept."""
    return os.environ | {"JAX_PLATFORMS": "cpu"} | more


# The command with a clock that jumps by so many seconds after so many.
JUMPING = """
import sys, time
real, began, jump, after = time.time, time.monotonic(), float(sys.argv[1]), float(sys.argv[2])
time.time = lambda: real() + jump * (time.monotonic() - began > after)
from cai_jax import main
sys.exit(main.main(["main", *sys.argv[3:]]))
"""


def command(
    workdir, *flags, graph: Graph = TINY, clock: tuple[float, float] | None = None
) -> list[str]:
    program = ["-m", "cai_jax.main"] if clock is None else ["-c", JUMPING, *map(str, clock)]
    return [
        sys.executable,
        *program,
        f"--config=configs/{graph.config}.py",
        f"--workdir={workdir}",
        *graph.flags,
        *flags,
    ]


def run(
    workdir, *flags, graph: Graph = TINY, max_file_bytes: int | None = None, **env
) -> subprocess.CompletedProcess:
    """The command until its end. `max_file_bytes`: writing fails beyond it, as on a full disk."""

    def limit():
        if max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    return subprocess.run(
        command(workdir, *flags, graph=graph),
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        preexec_fn=limit,
    )


def records(workdir, stage: str, name: str = "records") -> list[dict]:
    return [
        json.loads(line) for line in (workdir / stage / f"{name}.jsonl").read_text().splitlines()
    ]


def artefacts(workdir, graph: Graph = TINY) -> dict:
    """Everything that two equal runs have equal: records, metrics, rollouts, published models,
    summaries, and the digests of the last weights and of every snapshot."""
    found = {}
    for stage in graph.stages:
        folder = workdir / stage
        manifest = json.loads((folder / "manifest.json").read_text())
        found[f"{stage}/done"], found[f"{stage}/dropped"] = manifest["done"], manifest["dropped"]
        if stage == "report":
            continue
        found[f"{stage}/summary"] = manifest["summary"]
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(workdir))
            if (
                path.is_dir()
                or "/checkpoints/" in name
                or "/tensorboard/" in name
                or path.name in UNCOMPARED
            ):
                continue
            found[name] = npz(path) if path.suffix == ".npz" else path.read_bytes()
        steps = sorted((folder / "checkpoints").glob("[0-9]*/about/metadata"))
        for step in steps:
            value = json.loads(step.read_text())
            if value["keep"] or step == steps[-1]:
                found[f"{stage}/{step.parent.parent.name}"] = value["digests"], value["meta"]
    return found


def npz(path) -> dict:
    with np.load(path) as arrays:
        return {key: arrays[key].tobytes() for key in arrays}


def differences(expected: dict, found: dict) -> list[str]:
    """Names of what is lost, new or different."""
    return sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )


def doubled(workdir) -> list[str]:
    """Records that are there twice."""
    twice = []
    for path in workdir.glob("*/*.jsonl"):
        ids = [row["id"] for row in map(json.loads, path.read_text().splitlines()) if "id" in row]
        twice += [f"{path}: {name}" for name in set(ids) if ids.count(name) > 1]
    return twice


class Run:
    """The command in the background."""

    def __init__(self, workdir, *flags, **how):
        self.workdir = pathlib.Path(workdir)
        self.process = subprocess.Popen(
            command(workdir, *flags, **how),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_changes(self, number: int) -> bool:
        """Waits for `number` moments at which files under the run had changed; False where the run
        ended before."""
        seen, deadline = self._state(), time.monotonic() + TIMEOUT
        while number > 0 and time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            state = self._state()
            number -= state != seen
            seen = state
            time.sleep(0.02)
        return True

    def _state(self):
        """Names and sizes; files may go while they are looked at."""
        state = []
        for folder, _, names in os.walk(self.workdir):
            for name in names:
                with contextlib.suppress(OSError):
                    found = os.stat(os.path.join(folder, name))
                    state.append((folder, name, found.st_size, found.st_mtime_ns))
        return state

    def stop(self, how: signal.Signals) -> tuple[int, str]:
        """(return code, standard error) after a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, errors


def one_line(errors: str) -> bool:
    """Whether it ended in one line that says what is wrong, apart from warnings."""
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    return len(lines) == 1 and "Traceback" not in errors


# What can happen to a run. Each takes (workdir, random numbers, graph) and leaves a run that is not
# going on.


def kill(workdir, draw: random.Random, graph: Graph = TINY, **how) -> str:
    run = Run(workdir, graph=graph, **how)
    run.wait_for_changes(draw.randint(1, NUM_CHANGES // 12))
    time.sleep(draw.uniform(0, 0.05))
    code, errors = run.stop(signal.SIGKILL)
    assert code in (-9, 0), errors[-2000:]
    return f"SIGKILL {code}"


def terminate(workdir, draw: random.Random, graph: Graph = TINY) -> str:
    run = Run(workdir, graph=graph)
    run.wait_for_changes(draw.randint(2, NUM_CHANGES // 12))
    code, errors = run.stop(signal.SIGTERM)
    assert code in (75, 0) and "Traceback" not in errors, errors[-2000:]
    return f"SIGTERM {code}"


def fill_the_disk(workdir, draw: random.Random, graph: Graph = TINY) -> str:
    """Files cannot grow beyond a drawn size."""
    done = run(workdir, graph=graph, max_file_bytes=int(2 ** draw.uniform(6, 18)))
    assert done.returncode == 0 or (done.returncode == 2 and one_line(done.stderr)), done.stderr[
        -2000:
    ]
    return f"full disk {done.returncode}"


def get_in_the_way(workdir, draw: random.Random, graph: Graph = TINY) -> str:
    """Where a file of a stage is to be written there is something that cannot be replaced (for
    root, nothing is read-only). It is one of the next stages, so that the run ends there."""
    stage = draw.choice([stage for stage in graph.order if not is_done(workdir, stage)][:3])
    names = {
        "metrics.jsonl": TRAINING_STAGES,
        "records.parts": graph.text_stages,
        ".manifest.json.writing": graph.stages,
    }
    name = draw.choice([name for name, stages in names.items() if stage in stages])
    path = workdir / stage / name
    if path.exists():
        return kill(workdir, draw, graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "records.parts":
        path.write_text("")
    else:
        (path / "full").mkdir(parents=True)
    done = run(workdir, graph=graph)
    assert done.returncode == 0 or (done.returncode == 2 and one_line(done.stderr)), done.stderr[
        -2000:
    ]
    if (path / "full").is_dir():
        (path / "full").rmdir()
        path.rmdir()
    elif path.name == "records.parts" and path.is_file():
        path.unlink()
    return f"blocked {done.returncode}"


def truncate(workdir, draw: random.Random, graph: Graph = TINY) -> str:
    """A kill, and the end of the file that was written last is lost."""
    what = kill(workdir, draw, graph)
    pattern = re.compile(r"parts/\d+\.jsonl$|metrics\.jsonl$|/d/")
    files = [path for path in workdir.rglob("*") if path.is_file() and pattern.search(str(path))]
    files = [
        path
        for path in files
        if not is_done(workdir, path.relative_to(workdir).parts[0]) and path.stat().st_size
    ]
    if files:
        path = max(files, key=lambda path: (path.stat().st_mtime_ns, str(path)))
        os.truncate(path, draw.randrange(path.stat().st_size))
        what += f", truncated {path.relative_to(workdir)}"
    return what


def change_the_clock(workdir, draw: random.Random, graph: Graph = TINY) -> str:
    """The clock jumps while the run goes on, forth or back by up to a year; a kill, and all that is
    there seems to be from another year again."""
    what = kill(workdir, draw, graph, clock=(draw.uniform(-1, 1) * 3e7, draw.uniform(0, 10)))
    moment = time.time() + draw.uniform(-1, 1) * 3e7
    for path in workdir.rglob("*"):
        os.utime(path, (moment, moment))
    return f"{what}, clock changed"


HINDRANCES = (kill, terminate, fill_the_disk, get_in_the_way, truncate, change_the_clock)


def is_finished(workdir, graph: Graph = TINY) -> bool:
    return all(is_done(workdir, stage) for stage in graph.stages)


def is_done(workdir, stage: str) -> bool:
    try:
        return json.loads((workdir / stage / "manifest.json").read_text())["done"]
    except (OSError, ValueError, KeyError):
        return False
