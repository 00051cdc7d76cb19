"""llama.cpp's server in a process of its own: `Server` is the parent's side, `main` the child's.

A child, since an assertion inside llama.cpp must not end us, its peak memory is then the model's, and what it logs
belongs in our errors. The first line of its standard input is a JSON object with the arguments of `started`. One JSON
line on its standard output, {"address"}, says that the model is loaded. It lives until its standard input closes, which
happens when its parent ends, however it ends. What llama.cpp says goes to its standard error, a file.
"""

import contextlib
import http.client
import importlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visiontune.errors import MachineError, ModelError

LOAD_SECONDS = 600.0
REQUEST_SECONDS = 600.0
END_SECONDS = 10.0
LOG_LINES = 12
TOKENS_AT_ONCE = 1024
"""Tokens that go through the network at once. A tile of any model we export gives fewer."""


class Server:
    """A child with the files loaded, on a free port of 127.0.0.1."""

    def __init__(self, text_model: Path, projector: Path | None, threads: int, context: int) -> None:
        """Start the child and wait until the files are loaded; errors as of `Runtime`."""
        check_package()
        for path in (text_model, projector):
            if path is not None and not path.is_file():
                raise ModelError("There is no such file.", where=str(path), fix="export the model again: --to gguf")
        self.version = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        self.model = text_model
        self.context = context
        self._folder = tempfile.TemporaryDirectory(prefix="visiontune-llama-")
        self.log = Path(self._folder.name, "llama.log")
        # Any page in a browser may ask a local port: only who holds the key is answered.
        self._key = secrets.token_hex(16)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: it must not end the child under a request
            )
        try:
            self._address = self._load(text_model, projector, threads)
        except BaseException:
            self.close()
            raise

    def _load(self, text_model: Path, projector: Path | None, threads: int) -> str:
        """Tell the child what to load and wait for its address, host and port."""
        asked = {
            "text_model": str(text_model),
            "projector": None if projector is None else str(projector),
            "threads": threads,
            "context": self.context,
            "key": self._key,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(OSError):  # a child that died at once: it says nothing either
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        late = threading.Timer(LOAD_SECONDS, self.process.kill)
        late.daemon = True
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if not line:
            raise ModelError(
                f"llama.cpp could not load the model.\n{self._last_lines()}",
                where=" and ".join(str(path) for path in (text_model, projector) if path is not None),
                fix="export it again (--to gguf), and give the text model and its own projector",
            )
        return json.loads(line)["address"].removeprefix("http://")

    def ask(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        """One request and its answer, both JSON. A refusal, in llama.cpp's words, and a death are ModelErrors."""
        connection = http.client.HTTPConnection(self._address, timeout=REQUEST_SECONDS)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request(method, path, json.dumps(body).encode() if body else None, headers)
            response = connection.getresponse()
            status, content = response.status, response.read()
        except TimeoutError:
            raise ModelError(
                f"llama.cpp did not answer within {REQUEST_SECONDS:.0f} s.\n{self._last_lines()}",
                where=str(self.model),
                fix="use an image layout of fewer tiles, or more threads",
            ) from None
        except (OSError, http.client.HTTPException):
            raise self._death() from None
        finally:
            connection.close()
        if status != 200:
            raise self._refusal(content)
        return json.loads(content)

    def peak_memory_bytes(self) -> int:
        """The most memory that the child has held, mapped files included; outside Linux what it holds now."""
        if self.process.poll() is not None:
            raise self._death()
        if sys.platform == "linux":
            status = Path("/proc", str(self.process.pid), "status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss

    def close(self) -> None:
        """End the child and wait until it is gone; may be called twice."""
        self.process.kill()  # it has nothing to save
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not read before the child died
                    pipe.close()
        self._folder.cleanup()

    def _refusal(self, content: bytes) -> ModelError:
        try:
            error = json.loads(content)["error"]
        except (ValueError, KeyError):
            error = {"message": content.decode(errors="replace")}
        fix = None
        if error.get("type") == "exceed_context_size_error":
            fix = f"give a context of more than {error.get('n_prompt_tokens', self.context)} tokens"
        return ModelError(f"llama.cpp refused: {error['message']}", where=str(self.model), fix=fix)

    def _death(self) -> ModelError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)  # the connection breaks a moment before the process is gone
        return ModelError(
            f"llama.cpp ended while it was needed (exit code {self.process.returncode}).\n{self._last_lines()}",
            where=str(self.model),
            fix="if memory ran out, give a smaller context; else report this with the lines above",
        )

    def _last_lines(self) -> str:
        """The last lines of llama.cpp's log; those that it calls errors, where there are some."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        errors = [line for line in lines if line.split(maxsplit=2)[1:2] == ["E"]]
        return "\n".join((errors or lines)[-LOG_LINES:])


def main() -> None:
    """The child: load, tell the address, serve."""
    # What a library prints must not be taken for our line: the true standard output is kept aside.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.buffer.readline())
    # Loading may take long; a parent that is killed meanwhile must take us with it.
    waiting = threading.Thread(target=_end_with_the_parent, daemon=True)
    waiting.start()
    try:
        server = started(**asked)
    except RuntimeError as error:  # its words say little: the lines before it, llama.cpp's own, tell what was wrong
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # the thread above would hold up the usual end
    print(json.dumps({"address": server.listening_address}), file=answer, flush=True)
    waiting.join()


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # nothing to tidy, and llama.cpp's own end may wait for a request


def check_package(since: str | None = None) -> None:
    """Raise MachineError where llama.cpp is not installed, or older than the version `since`, as "2026.10"."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MachineError("Running a GGUF file needs the package xllamacpp.", fix="pip install 'visiontune[gguf]'")
    found = importlib.metadata.version("xllamacpp")
    if since is not None and _numbers(found) < _numbers(since):
        raise MachineError(
            f"xllamacpp {found} is older than {since}: its llama.cpp may lay out pictures in another way.",
            fix=f"pip install 'xllamacpp>={since}'",
        )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def started(text_model: str, projector: str | None, threads: int, context: int, key: str) -> Any:
    """An `xllamacpp.Server` on a free port of 127.0.0.1, on CPU; raises RuntimeError where a file cannot be loaded.

    It answers those who send the key. Flash attention and the types of the key-value cache (F16) stay at llama.cpp's
    defaults: that is what an app runs.
    """
    xllamacpp: Any = importlib.import_module("xllamacpp")  # it has no types
    settings = xllamacpp.CommonParams()
    settings.model.path = text_model
    if projector is None:
        settings.no_mmproj = True  # else a projector that lies beside the file might be taken
    else:
        settings.mmproj.path = projector
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_threads_http = 2
    settings.n_parallel = 1
    settings.n_ctx = settings.n_batch = context
    settings.n_ubatch = min(context, TOKENS_AT_ONCE)
    settings.n_gpu_layers = 0
    settings.mmproj_use_gpu = False
    settings.no_kv_offload = True
    settings.fit_params = False  # else llama.cpp may change the context to what it thinks fits
    settings.cache_ram_mib = 0  # old prompts are not kept: they would count as memory of the model
    settings.warmup = False
    settings.ui = False
    settings.api_keys = [key]
    return xllamacpp.Server(settings)


if __name__ == "__main__":
    main()
