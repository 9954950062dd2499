"""A small server with OpenAI's and Anthropic's batch APIs, as far as `cai_jax.batch` uses them. It
answers a batch when it is asked for its state the second time."""

import contextlib
import email
import json
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests import answer_files


class BatchServer:
    """`log`: (method, path, whether the key was right) of every request. `lose`: so many answers
    to the start of a batch are lost on their way back. `ends_as`: how batches end."""

    def __init__(self, key: str):
        self.key, self.log = key, []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.lose, self.ends_as = 0, "completed"

    # OpenAI ---------------------------------------------------------------------------------------

    async def create_file(self, request):
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        parts = email.message_from_bytes(head + await request.body()).get_payload()
        (data,) = [part.get_payload(decode=True) for part in parts if part.get_filename()]
        name = f"file-{len(self.files)}"
        self.files[name] = data
        about = {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "x"}
        return JSONResponse(about | {"purpose": "batch", "status": "processed"})

    async def content(self, request):
        return Response(self.files[request.path_params["name"]])

    async def create(self, request):
        body = await request.json()
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {**body, "id": name, "object": "batch", "status": "in_progress"}
        self.batches[name] |= {"created_at": 0, "seen": 0}
        if self.lose:
            self.lose -= 1
            return Response("no such gateway", status_code=502)
        return JSONResponse(self.batches[name])

    async def listed(self, request):
        data = list(self.batches.values())
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def retrieve(self, request):
        batch = self.batches[request.path_params["name"]]
        batch["seen"] += 1
        if batch["seen"] == 2:
            batch["status"] = self.ends_as
        if batch["seen"] == 2 and self.ends_as == "completed":
            lines = self.files[batch["input_file_id"]].decode().split("\n")
            requests = [json.loads(line) for line in lines if line]
            *answered, failed = map(answer_files.result_of, requests)
            failed["response"] = {"status_code": 500, "body": {"error": {"message": "oh"}}}
            batch["output_file_id"], batch["error_file_id"] = "output", "errors"
            self.files["output"] = "\n".join(map(json.dumps, answered)).encode()
            self.files["errors"] = json.dumps(failed).encode()
        return JSONResponse(batch)

    # Anthropic ------------------------------------------------------------------------------------

    async def create_messages(self, request):
        self.batches["msgbatch"] = {"requests": (await request.json())["requests"], "seen": 0}
        return JSONResponse({"id": "msgbatch", "processing_status": "in_progress"})

    async def messages(self, request):
        batch = self.batches["msgbatch"]
        batch["seen"] += 1
        status = "ended" if batch["seen"] > 1 else "in_progress"
        return JSONResponse({"id": "msgbatch", "processing_status": status})

    async def message_results(self, request):
        results = [
            {
                "custom_id": each["custom_id"],
                "result": {
                    "type": "succeeded",
                    "message": {
                        "model": each["params"]["model"],
                        "content": [{"type": "text", "text": "(B)"}],
                        "stop_reason": "end_turn",
                        "usage": {"input_tokens": 9, "output_tokens": 2},
                    },
                },
            }
            for each in self.batches["msgbatch"]["requests"]
        ]
        return Response("\n".join(map(json.dumps, results)))

    def app(self):
        def guarded(handle):
            async def checked(request):
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                right = self.key in (given, request.headers.get("x-api-key"))
                self.log.append((request.method, request.url.path, right))
                if not right:
                    wrong = {"error": {"message": f"bad key {given}"}}
                    return JSONResponse(wrong, status_code=401)
                return await handle(request)

            return checked

        routes = (
            ("/files", self.create_file, "POST"),
            ("/files/{name}/content", self.content, "GET"),
            ("/batches", self.create, "POST"),
            ("/batches", self.listed, "GET"),
            ("/batches/{name}", self.retrieve, "GET"),
            ("/messages/batches", self.create_messages, "POST"),
            ("/messages/batches/msgbatch", self.messages, "GET"),
            ("/messages/batches/msgbatch/results", self.message_results, "GET"),
        )
        return Starlette(
            routes=[Route(f"/v1{p}", guarded(handle), methods=[m]) for p, handle, m in routes]
        )


@contextlib.contextmanager
def serving(server: BatchServer):
    """Yields the server's URL."""
    config = uvicorn.Config(server.app(), port=0, log_config=None)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    running.should_exit = True
    thread.join()
