"""Runs the mutants: one edit to one module each, and the fast tests that are to notice it.

    python -m tests.mutants.run [--only PATTERN] [--jobs 2] [--fresh]

A process that has imported the libraries (not the project, and no JAX backend) forks one child a
mutant. The child imports the project with the mutated module in place of the real one and runs
pytest in itself. Programs that XLA has compiled before are read from build/mutants/compiled. What
is finished is in build/mutants/results.jsonl and is not run again while sources and tests are the
same. The status is 1 where fewer than 95 % are killed or an old text is no longer in its file
exactly once.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import signal
import sys
import time

from tests.mutants import source

OUT = source.ROOT / "build" / "mutants"
WANTED = 0.95
SLOWEST = 60.0  # seconds that a mutant may take, beside five times what its tests take without it
LIBRARIES = (
    "numpy scipy.stats scipy.optimize jax jax.numpy optax chex flax.linen orbax.checkpoint "
    "transformers tokenizers "
    "safetensors.numpy ml_collections etils.epath hypothesis pytest grain tqdm pyarrow.parquet "
    "filelock jinja2 xml.etree"
).split()


class Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, with another source than its file's."""

    def __init__(self, module: str, path: pathlib.Path, text: str):
        super().__init__(module, str(path))
        self._text = text

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname):
        return compile(self._text, self.path, "exec", dont_inherit=True)


class FirstFailure:
    """A pytest plugin that keeps the name of the first test that failed and counts those that
    ran."""

    def __init__(self):
        self.name, self.passed = "", 0

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid
        self.passed += report.when == "call" and report.passed

    def pytest_collectreport(self, report):
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (import)"


@dataclasses.dataclass
class Child:
    pid: int
    key: str
    began: float
    limit: float


def run_tests(tests, mutant: source.Mutant | None, report: pathlib.Path) -> None:
    """In a child: the tests against the mutant (None: against the code as it is). Never returns."""
    os.setsid()
    log = os.open(report.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    if mutant is not None:
        path = source.ROOT / mutant.file
        text = source.mutate(path.read_text(encoding="utf-8"), mutant.old, mutant.new)
        sys.meta_path.insert(0, Mutated(mutant.module, path, text))
    import pytest

    failure = FirstFailure()
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:randomly"]
    status = pytest.main([*options, *tests], plugins=[failure])
    report.write_text(json.dumps([int(status), failure.name, failure.passed]), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


class Pool:
    """At most `jobs` children at a time; `finished(key, status, first failure, seconds)` is called
    for each."""

    def __init__(self, jobs: int, finished):
        self._jobs, self._finished, self._running = jobs, finished, {}

    def add(self, key: str, tests, mutant, limit: float) -> None:
        self.wait(self._jobs - 1)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                run_tests(tests, mutant, OUT / f"{os.getpid()}.json")
            finally:  # whatever happens, a child must not go on as its parent
                os._exit(3)
        self._running[pid] = Child(pid, key, time.monotonic(), limit)

    def wait(self, most: int = 0) -> None:
        """Until no more than `most` children are at work."""
        while len(self._running) > most:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._end(self._running.pop(pid), "crash")
                continue
            for child in list(self._running.values()):
                if time.monotonic() - child.began > child.limit:
                    os.killpg(child.pid, signal.SIGKILL)
                    os.waitpid(child.pid, 0)
                    self._end(self._running.pop(child.pid), "time limit")
            time.sleep(0.02)

    def _end(self, child: Child, otherwise: str) -> None:
        seconds, report = time.monotonic() - child.began, OUT / f"{child.pid}.json"
        status, name, passed = 1, otherwise, 0
        if report.exists():
            status, name, passed = json.loads(report.read_text(encoding="utf-8"))
            report.unlink()
        log = report.with_suffix(".log")
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        self._finished(child.key, status, name, passed, seconds, text)


def tree_digest() -> str:
    """Of all Python sources, lists and data that a test may read: a result holds as long as it
    stays."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in ("cai_jax", "configs", "tests"):
        for path in sorted((source.ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".toml":
                digest.update(str(path).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def baseline(mutants: list[source.Mutant], jobs: int) -> dict[str, float]:
    """Seconds of each test file without a mutation. Stops the command where one fails: nothing
    could be concluded then."""
    by_file = collections.defaultdict(set)
    for mutant in mutants:
        for test in mutant.tests:
            by_file[test.partition("::")[0]].add(test)
    seconds: dict[str, float] = {}

    def finished(name, status, failure, passed, took, log):
        seconds[name] = took
        print(f"  {took:6.1f} s  {passed:3d} tests  {name}", flush=True)
        if status or not passed:
            print(log[-4000:])
            sys.exit(f"{name}: fails without a mutation ({failure or status})")

    print("The tests without a mutation:")
    pool = Pool(jobs, finished)
    for name, tests in sorted(by_file.items()):
        # A whole file where any mutant wants it, else the tests that are named.
        pool.add(name, [name] if name in tests else sorted(tests), None, 1200.0)
    pool.wait()
    return seconds


def report(mutants: list[source.Mutant], results: dict[str, dict]) -> int:
    """Prints the survivors and the table by file; the exit status."""
    alive = [mutant for mutant in mutants if not results[mutant.name]["killed"]]
    for mutant in alive:
        print(f"\nSURVIVED {mutant.name}\n  would break: {mutant.breaks}")
        print(f"  {'explained: ' + mutant.explained if mutant.explained else 'NOT EXPLAINED'}")
    table = collections.defaultdict(lambda: [0, 0, 0])
    for mutant in mutants:
        for row in (table[mutant.file], table["all"]):
            row[0] += 1
            row[1] += results[mutant.name]["killed"]
            row[2] += not results[mutant.name]["killed"] and bool(mutant.explained)
    print(f"\n{'file':44s} mutants killed survived explained")
    for name in [*sorted(set(table) - {"all"}), "all"]:
        number, killed, explained = table[name]
        print(f"{name:44s} {number:7d} {killed:6d} {number - killed:8d} {explained:9d}")
    share = 1 - len(alive) / len(mutants)
    print(f"{share:.1%} killed, {WANTED:.0%} wanted")
    return 0 if share >= WANTED else 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression on 'file: old -> new'")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--fresh", action="store_true", help="forget the results that there are")
    parser.add_argument("--anchors", action="store_true", help="only look for the old texts")
    return parser.parse_args()


def main() -> int:
    options, every = arguments(), source.load()
    if lost := source.unanchored(every):
        print("\n".join(lost))
        return 1
    names = collections.Counter(mutant.name for mutant in every)
    if twice := [name for name, count in names.items() if count > 1]:
        print("twice in the lists:", *twice, sep="\n")
        return 1
    print(f"{len(every)} mutants, each anchored in its file once")
    mutants = [mutant for mutant in every if re.search(options.only, mutant.name)]
    if options.anchors or not mutants:
        return 0 if options.anchors else 1
    prepare()
    tree, path, results = tree_digest(), OUT / "results.jsonl", {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for row in map(json.loads, [] if options.fresh else lines):
        if row["tree"] == tree:
            results[row["name"]] = row
    by_name = {mutant.name: mutant for mutant in mutants}
    todo = [m for m in mutants if results.get(m.name, {}).get("tests") != list(m.tests)]
    began, seconds = time.monotonic(), baseline(todo, options.jobs)
    print(f"baseline: {time.monotonic() - began:.0f} s; {len(todo)} mutants to run", flush=True)

    def finished(name, status, failure, passed, took, log):
        row = {
            "name": name,
            "tree": tree,
            "tests": list(by_name[name].tests),
            "killed": status != 0,
            "by": failure,
            "seconds": round(took, 1),
        }
        results[name] = row
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        word = "killed  " if status else "SURVIVED"
        print(f"{word} {took:5.1f} s  {name[:110]}  {failure[:70]}", flush=True)

    pool = Pool(options.jobs, finished)
    for mutant in todo:
        own = sum(seconds[test] for test in {test.partition("::")[0] for test in mutant.tests})
        pool.add(mutant.name, mutant.tests, mutant, SLOWEST + 5 * own)
    pool.wait()
    print(f"{time.monotonic() - began:.0f} s in all", flush=True)
    return report(mutants, results)


def prepare() -> None:
    """Imports what every child needs. Never the project itself, and nothing that starts a JAX
    backend: it would not survive a fork."""
    OUT.mkdir(parents=True, exist_ok=True)
    os.chdir(source.ROOT)
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=str(OUT / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        HYPOTHESIS_STORAGE_DIRECTORY=str(OUT / "hypothesis"),
    )
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:  # a child that needs it says so
            print(f"not there: {name}")
    if loaded := [name for name in sys.modules if name.partition(".")[0] == "cai_jax"]:
        raise RuntimeError(f"the parent has imported {loaded[0]}: a mutation would not reach it")


if __name__ == "__main__":
    sys.exit(main())
