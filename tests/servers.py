"""vLLM servers for tests, started through tools/serve.sh, and stand-ins for servers that fail in a chosen way."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from fulgurite.engines.weights import checksum
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel

ROOT = Path(__file__).parents[1]
# Whatever ends this process ends its standard input, and with it the server.
KEEPER = 'exec 3<&0; bash "$@" 3<&- & cat <&3 & wait -n; kill -KILL 0'


class VLLMServer:
    """A server of tools/serve.sh that ends with this process.

    Attributes:
        url: the same after `start` of a killed one.
    """

    def __init__(self, model: str) -> None:
        self.model, self.log = model, f"{model}.{id(self)}.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = ["bash", "-c", KEEPER, "bash", "tools/serve.sh", self.model, str(self.port)]
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )

    def wait(self, limit_s: float = 200.0) -> None:
        """Until it answers."""
        end = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"no server after {limit_s:g} s: {Path(self.log).read_text()[-3000:]}")

    def kill(self) -> None:
        """With everything that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def completed(self) -> int:
        """Completions that it has finished."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total")))


@cache
def vllm_servers(alphabet: str) -> tuple[VLLMServer, VLLMServer]:
    """Two for tiny models of this alphabet; started at the first call in this process, the only one that takes long."""
    folder = TemporaryDirectory(prefix="fulgurite-test-servers-")
    tiny = TinyModel(alphabet=alphabet)
    CausalLM.load(tiny).hf.config.save_pretrained(f"{folder.name}/model")
    load_tokenizer(tiny).save_pretrained(f"{folder.name}/model")
    servers = VLLMServer(f"{folder.name}/model"), VLLMServer(f"{folder.name}/model")
    for server in servers:
        server.folder = folder  # kept for a restart
        server.wait()
    return servers


class Front:
    """A server in this process: `answer(path, body)` gives (status, object or text), None to pass the request on to
    `behind`, or raises `Drop` to close the connection. `asked` holds the paths and bodies so far."""

    def __init__(self, answer, behind: str | None = None) -> None:
        self.answer, self.behind = answer, behind
        self.asked: list[tuple[str, dict]] = []
        self.closed = threading.Event()

    def __enter__(self) -> "Front":
        front = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                front.handle(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """From then on connections are refused."""
        if not self.closed.is_set():
            self.closed.set()
            self.server.shutdown()
            self.server.server_close()

    def completions(self) -> list[dict]:
        """The requests for completions, but for those of one token with which the engine greets a server."""
        return [body for path, body in self.asked if path == "/v1/completions" and body["prompt"] != [0]]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        text = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        body = json.loads(text) if text else {}
        self.asked.append((request.path, body))
        try:
            answer = self.answer(request.path, body)
            if answer is None:
                passed = httpx.request(request.command, self.behind + request.path, content=text, timeout=60, trust_env=False,
                                       headers={"Content-Type": "application/json"})  # fmt: skip
                answer = passed.status_code, passed.text
            status, value = answer
            value = (value if isinstance(value, str) else json.dumps(value)).encode()
            request.send_response(status)
            request.send_header("Content-Length", str(len(value)))
            request.end_headers()
            request.wfile.write(value)
        except (Drop, ConnectionError):
            request.close_connection = True


class Drop(Exception):
    """Closes the connection without an answer."""


class Pretender:
    """Answers as a sound server does, with completions made of the prompt's own tokens; methods are replaced by tests."""

    def __init__(self, model: CausalLM, dtype: str = "float32", process: str = "1") -> None:
        self.model, self.dtype, self.process = model, dtype, process

    def __call__(self, path: str, body: dict) -> tuple[int, object]:
        if path == "/collective_rpc":
            return self.call(body["method"], body["kwargs"])
        if path == "/v1/completions":
            return (self.greet if body["prompt"] == [0] else self.complete)(body)
        return 200, {"data": [{"max_model_len": 100}], "success": True}

    def call(self, method: str, arguments: dict) -> tuple[int, object]:
        if method != "weight_checksums":
            return 200, {"results": [None]}
        rows = [([name], w.numel(), checksum(w).tolist(), self.dtype) for name, w in self.model.named_full_weights()]
        return 200, {"results": [rows]}

    def greet(self, body: dict) -> tuple[int, object]:
        return 200, {"choices": [self.choice([5], [0.0])], "system_fingerprint": self.process}

    def complete(self, body: dict) -> tuple[int, object]:
        choices = [self.choice(body["prompt"] + [i + 3], [-0.5] * (len(body["prompt"]) + 1)) for i in range(body["n"])]
        return 200, {"choices": choices, "system_fingerprint": self.process}

    @staticmethod
    def choice(tokens: list[int], logprobs: list) -> dict:
        return {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": "length"}
