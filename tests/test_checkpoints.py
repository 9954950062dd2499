"""Checkpoints: bit-equal, atomic under kill -9, honest about damage, and independent of the
mesh."""

import concurrent.futures
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax.errors import UserError
from cai_jax.io import checkpoints as lib

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def trees(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "layers": {"w": jax.random.normal(keys[0], (4, 8, 6))},
        "embed": jax.random.normal(keys[1], (16, 8)),
        "half": jax.random.normal(keys[2], (5,)).astype(jnp.bfloat16),
    }
    return {"params": params, "optimiser": optax.adam(optax.constant_schedule(0.1)).init(params)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE), tree)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        lambda x, y: (np.testing.assert_array_equal(x, y), x.dtype == y.dtype or pytest.fail()),
        a,
        b,
    )


def test_round_trip_items_and_meta(tmp_path):
    saved, store = trees(), lib.Checkpoints(tmp_path / "c")
    assert store.latest() is None and store.restore_latest(abstract(saved)) is None
    store.save(3, saved, {"kl_coefficient": 0.25, "text": "ü"})
    got, meta = lib.Checkpoints(tmp_path / "c").restore(3, abstract(saved))
    assert_equal(got, saved)
    assert meta == {"kl_coefficient": 0.25, "text": "ü"}
    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=ONE), saved["params"]
    )
    weights, _ = store.restore(3, {"params": half})
    assert_equal(weights["params"], jax.tree.map(lambda x: x.astype(jnp.bfloat16), saved["params"]))


def test_saves_leave_no_python_objects_behind(tmp_path):
    """Without care for TensorStore's leak a save of this keeps some 300."""
    store, saved = lib.Checkpoints(tmp_path), {"params": trees()["params"]}
    for step in range(1, 11):
        store.save(step, saved)
        if step == 4:
            gc.collect()
            before = sys.getallocatedblocks()
    gc.collect()
    assert sys.getallocatedblocks() - before < 6 * 200  # caches fill: some 100 a save so early


def test_newest_stay_and_snapshots_keep_weights(tmp_path):
    store = lib.Checkpoints(tmp_path, keep=2)
    saved = trees()
    for step in range(1, 6):
        store.save(step, saved, keep=step == 2)
    assert store.steps() == [2, 4, 5]
    assert not (tmp_path / "00000002" / "optimiser").exists()
    store.restore(2, {"params": abstract(saved["params"])})
    with pytest.raises(ValueError, match="no item 'optimiser'"):
        store.restore(2, abstract(saved))
    for step in (4, 5):
        (tmp_path / f"{step:08d}" / "about" / "metadata").unlink()
    assert store.restore_latest(abstract(saved)) is None  # and the snapshot stays
    assert store.steps() == [2]
    store.restore(2, {"params": abstract(saved["params"])})


def test_clear_errors(tmp_path):
    store, saved = lib.Checkpoints(tmp_path), trees()
    store.save(1, saved)
    with pytest.raises(ValueError, match="saved before"):
        store.save(1, saved)
    with pytest.raises(ValueError, match=r"no step 9; there are \[1\]"):
        store.restore(9, abstract(saved))
    other = abstract(saved["params"]) | {
        "embed": jax.ShapeDtypeStruct((16, 9), jnp.float32, sharding=ONE)
    }
    with pytest.raises(ValueError, match=r"'embed' is .*16, 8.*needs \(16, 9\)"):
        store.restore(1, {"params": other})
    with pytest.raises(ValueError, match="only in the model or.*unembed"):
        store.restore(1, {"params": abstract(saved["params"]) | {"unembed": other["embed"]}})


def array_files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path)]


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_is_found_and_the_step_before_is_used(tmp_path, seed, capsys):
    """Flips one bit in the array data of the newest step. Whatever it hits, nothing wrong is ever
    restored."""
    store, saved = lib.Checkpoints(tmp_path), trees()
    store.save(1, saved)
    store.save(2, trees(1))
    rng = np.random.default_rng(seed)
    files = sorted(array_files(tmp_path / "00000002" / "params"))
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
        got, _ = lib.Checkpoints(tmp_path).restore(2, {"params": abstract(saved["params"])})
        assert_equal(got["params"], trees(1)["params"])  # the bit was in bytes that mean nothing
    except UserError as error:
        assert "damaged" in str(error)
        step, got, _ = store.restore_latest(abstract(saved))
        assert step == 1 and "going back to the step before" in capsys.readouterr().err
        assert_equal(got, saved)
        store.save(2, trees(1))  # the damaged one is out of the way
        assert store.restore_latest(abstract(saved))[0] == 2


def test_bits_in_every_leaf_are_covered_by_digests():
    tree = {
        "a": jnp.arange(6.0).reshape(2, 3),
        "b": jnp.ones((4,), jnp.bfloat16),
        "c": jnp.array(3, jnp.int32),
        "d": jnp.array([True, False]),
    }
    base = lib.digests(tree)
    next_up = np.nextafter(np.float32(5), np.float32(6))
    changed = {
        "a": tree["a"].at[1, 2].set(next_up),
        "b": tree["b"].at[3].set(1.0078125),
        "c": jnp.array(2, jnp.int32),
        "d": jnp.array([False, True]),
    }
    for name in tree:
        assert lib.digests(tree | {name: changed[name]})[name] != base[name]
    assert lib.digests({"a": tree["a"][::-1]})["a"] != base["a"]
    assert (
        lib.digests({"a": -tree["a"] * 0})["a"] != lib.digests({"a": tree["a"] * 0})["a"]
    )  # −0 is not 0


def test_truncated_or_missing_files(tmp_path):
    store, saved = lib.Checkpoints(tmp_path, keep=9), trees()
    for step in (1, 2, 3):
        store.save(step, saved)
    for path in array_files(tmp_path / "00000003"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in array_files(tmp_path / "00000002" / "optimiser"):
        path.unlink()
    assert store.restore_latest(abstract(saved))[0] == 1
    assert store.steps() == [1]


def run_python(script: str, stderr=None, **environment) -> subprocess.Popen:
    head = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})\n"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", head + script],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment,
    )


def test_a_full_disk_is_one_line(tmp_path):
    """Many writes fail at once, from tensorstore's own threads: none of them may print a traceback
    beside our line."""
    done = run_python(
        f"""
import resource, jax.numpy as jnp
from cai_jax.errors import UserError
from cai_jax.io import checkpoints as lib
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
params = {{str(i): jnp.ones((64, 64)) for i in range(30)}}
for trial in range(5):
    try:
        lib.Checkpoints({str(tmp_path)!r} + str(trial)).save(1, {{"params": params}})
    except UserError as error:
        print(error, flush=True)
""",
        stderr=subprocess.PIPE,
    )
    out, errors = done.communicate(timeout=100)
    assert done.returncode == 0 and out.count("cannot write the checkpoint") == 5, errors[-2000:]
    assert "Traceback" not in errors and "event loop" not in errors.lower(), errors[-2000:]


def test_restores_onto_another_mesh(tmp_path):
    """Saved from a mesh of 4 × 2, read on 2 × 2 and on one device; the digests do not depend on the
    layout."""
    process = run_python(
        f"""
import jax, numpy as np
from cai_jax.io.checkpoints import Checkpoints
w = jax.random.normal(jax.random.key(0), (16, 8))
def place(a, b):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:a * b]).reshape(a, b), ("a", "b"))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
store = Checkpoints({str(tmp_path)!r})
store.save(1, {{"params": {{"w": jax.device_put(w, place(4, 2))}}}})
target = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place(2, 2))
got = store.restore(1, {{"params": {{"w": target}}}})[0]["params"]["w"]
print(len(got.sharding.device_set), bool((np.asarray(got) == np.asarray(w)).all()))
""",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert process.communicate()[0].split() == ["4", "True"]
    target = {"params": {"w": jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=ONE)}}
    got, _ = lib.Checkpoints(tmp_path).restore(1, target)
    assert_equal(got["params"], {"w": jax.random.normal(jax.random.key(0), (16, 8))})


def test_kill_in_mid_save_leaves_the_last_step(tmp_path):
    """A process that saves without end is killed at an arbitrary moment; every step that is listed
    is whole."""
    process = run_python(f"""
import jax
from cai_jax.io.checkpoints import Checkpoints
store = Checkpoints({str(tmp_path)!r}, keep=2)
for step in range(1, 10_000):
    full = {{str(i): jax.numpy.full((200_000,), step + i, "float32") for i in range(4)}}
    store.save(step, {{"params": full}})
    print(step, flush=True)
""")
    for _ in range(3):
        assert process.stdout.readline()
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = lib.Checkpoints(tmp_path)
    target = {
        "params": {
            str(i): jax.ShapeDtypeStruct((200_000,), jnp.float32, sharding=ONE) for i in range(4)
        }
    }
    latest = store.latest()
    assert latest >= 3
    for step in store.steps():
        got, _ = store.restore(step, target)
        assert all(float(got["params"][str(i)][0]) == step + i for i in range(4))
    # The unfinished folder is in nobody's way.
    store.save(latest + 1, {"params": {str(i): jnp.full((200_000,), float(i)) for i in range(4)}})
    assert store.restore_latest(target)[0] == latest + 1


def test_a_process_that_looks_late_waits_at_the_same_barriers(tmp_path, monkeypatch):
    """Two threads stand for two processes; the second looks at the directory when the first has had
    time to change it."""
    for step in range(1, 5):
        about = {"digests": {"params": {}}, "keep": False, "meta": {}}
        path = tmp_path / f"{step:08d}" / lib.ABOUT / "metadata"
        lib.artefacts.write_json(path, lib.artefacts.sealed(about))
        if step in (3, 4):
            path.write_text("{")
    process, met, barrier = threading.local(), {0: [], 1: []}, threading.Barrier(2)

    def wait(name):
        met[process.index].append(name)
        barrier.wait(timeout=20)
        time.sleep(0.2 * process.index)

    monkeypatch.setattr(lib.artefacts, "barrier", wait)
    monkeypatch.setattr(lib.artefacts, "is_writer", lambda: process.index == 0)
    monkeypatch.setattr(lib.Checkpoints, "_read", lambda *_: ({}, {}))

    def work(index):
        process.index = index
        time.sleep(0.2 * index)
        return lib.Checkpoints(tmp_path).restore_latest({"params": {}})

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        restored = [future.result() for future in [pool.submit(work, i) for i in range(2)]]
    assert restored == [(2, {}, {})] * 2
    assert met[0] == met[1] and len(met[0]) == 4  # before and after each of two steps is moved
    assert lib.Checkpoints(tmp_path).steps() == [1, 2]
