"""A model of a run behind an OpenAI-compatible server: `python -m cai_jax.serve RUN_OR_DIRECTORY`.

A policy answers /v1/chat/completions and /v1/completions, a preference model /pooling
(docs/serving.md). Only this machine reaches it, unless --host says otherwise; then clients need the
key in the environment variable CAI_JAX_API_KEY.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import ml_collections
from etils import epath

from cai_jax import notebook, references, runtime
from cai_jax.configuration import fields
from cai_jax.configuration.run import RUN
from cai_jax.core import sharding
from cai_jax.data import fitting
from cai_jax.errors import Parser, UserError, command
from cai_jax.export import find_stage
from cai_jax.io import artefacts, progress
from cai_jax.report.run import Run
from cai_jax.textmodels.loader import LoadedModel, ModelLoader

USAGE = (
    "python -m cai_jax.serve RUN_OR_DIRECTORY [--what=policy|pm] [--stage=NAME[:STEP]] "
    "[--name=NAME] [--port=8000] [--host=127.0.0.1] [--max_length=N] [--batch_size=N] [--queue=N]"
)
KEY = "CAI_JAX_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONNECTIONS = 1024
CLOSING_SECONDS = 5  # for answers that are being sent when the server ends


def load(source: str, what: str, stage: str) -> tuple[ModelLoader, LoadedModel, str]:
    """The model to serve and what clients call it.

    Args:
      source: a run directory, a model directory or a name on the hub.
      what: "policy" or "pm".
      stage: "NAME" or "NAME:STEP" of the run; "" for the last that has trained such a model.

    Raises:
      UserError: there is no such model.
    """
    saved = artefacts.read_json(epath.Path(source) / "config.json") or {}
    kind = "policy" if what == "policy" else "reward"
    if "config" in saved:
        models = notebook.Run(source).models
        wanted = f"@{stage.removeprefix('@')}" if stage else what
        name = find_stage(Run(source), wanted)
        reference = references.Reference(references.STAGE, name, references.parse(wanted).step)
        return models, models.load(str(reference), kind), name
    if stage:
        raise UserError(f"--stage: {source} is no run directory, which alone has stages")
    config = ml_collections.ConfigDict(fields.build(RUN))
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    models = ModelLoader(config, epath.Path("."), mesh)
    return models, models.load(source, kind), epath.Path(source.rstrip("/")).name


def make_app(
    source: str, what: str, stage: str = "", name: str = "", key: str = "", queue: int = 0, **limits
):
    """An application and the worker behind it, which is not started.

    Args:
      source, what, stage: as in `load`.
      name: what clients call the model, by default the stage's or the directory's name.
      key: what clients must send, "" for nothing.
      queue: texts that wait at most, 0 for 256.
      **limits: max_length in tokens and batch_size, 0 or absent for the run's own.

    Returns:
      The application, its worker and the name that clients use.
    """
    from cai_jax.serving.app import Preferences, pm_app, policy_app
    from cai_jax.serving.requests import Reader
    from cai_jax.serving.worker import Worker

    models, model, default = load(source, what, stage)
    name, queue = name or default, queue or 256
    if what == "pm":
        worker = Worker(None, queue)
        longest = fitting.smallest(limits.get("max_length"), model.config.max_length)
        reader = Reader(name, model.format, longest)
        app = pm_app(Preferences(reader, models.scorer(model), worker), name, key)
        return app, worker, name
    options = {option: value for option, value in limits.items() if value}
    engine = models.engine(model, **options)
    worker = Worker(engine, queue)
    return policy_app(Reader(name, model.format, engine.max_length), worker, key), worker, name


def serve(app, worker, listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM; what is being computed then is broken off."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame) -> None:
            worker.stop()
            super().handle_exit(sig, frame)

    # uvicorn raises the signal again once it has ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    worker.start()
    Server(config).run(sockets=[listener])
    worker.stop()
    worker.join()


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections there."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; take another") from None


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.serve", usage=USAGE, description=__doc__)
    option = parser.add_argument
    option("source", metavar="RUN_OR_DIRECTORY", help="a run, a model directory or a hub name")
    option("--what", default="policy", choices=("policy", "pm"), help="kind of model")
    option("--stage", default="", metavar="NAME[:STEP]", help="of the run; default: the last")
    option("--name", default="", help="of the model; default: the stage's or the directory's")
    option("--host", default="127.0.0.1", help=f"where to listen; another one needs {KEY}")
    option("--port", type=int, default=8000, help="0: one that is free")
    option("--max_length", type=int, default=0, help="tokens of prompt and answer")
    option("--batch_size", type=int, default=0, help="sequences that decode together")
    option("--queue", type=int, default=0, help="sequences that wait at most (256)")
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    limits = {name: getattr(arguments, name) for name in ("max_length", "batch_size", "queue")}
    for name, value in limits.items():
        if value < 0:
            raise UserError(f"--{name}: expected a number from 0")
    key = os.environ.get(KEY, "")
    if arguments.host not in LOOPBACK and not key:
        raise UserError(
            f"--host {arguments.host}: other machines could use the model; put a key that clients "
            f"must send into the environment variable {KEY}"
        )
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise UserError(
            "the server needs starlette and uvicorn: pip install 'cai_jax[serve]'"
        ) from None

    listener = listen(arguments.host, arguments.port)
    runtime.pin()
    runtime.require_devices()
    runtime.use_compilation_cache()
    app, worker, name = make_app(
        arguments.source, arguments.what, arguments.stage, arguments.name, key, **limits
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    progress.say(f"serving {name} at {url}")
    serve(app, worker, listener)
    return 0


if __name__ == "__main__":
    sys.exit(main())
