"""Runs with `--wandb online` when the network or W&B's server fails, against real local servers."""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from experiments.tracking.wandb_file import logged_rows
from experiments.training.loggers import LIMITS, wandb_logger

wandb = pytest.importorskip("wandb")

KEY = "5ub5m0key" * 5
CONFIG = {"arch": "sam_resnet", "wandb": "online"}


class Answers(BaseHTTPRequestHandler):
    """The answers that W&B's client needs to start, continue and upload a run."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if not self.server.running:  # a connection that is older than the stop
            self.close_connection = True
            return
        self.server.requests.append((self.path, body))
        answer = {}
        if self.path == "/graphql" and self.server.status == 200:
            name = json.loads(body).get("variables", {}).get("name")
            project = {"id": "p", "name": "sub5m", "entity": {"id": "e", "name": "someone"}}
            run = {"id": "b", "name": name, "displayName": name, "config": "{}"}
            answer = {
                "viewer": {"id": "v", "entity": "someone", "username": "someone", "flags": "{}"},
                "serverInfo": {"features": []},
                "model": {"id": "p", "bucket": None},
                "project": {"artifact": None},
                "upsertBucket": {"bucket": run | {"project": project}, "inserted": True},
                "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
            }
        content = json.dumps({"data": answer}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self):
        self.do_POST()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A local W&B server; `requests` contains the path and body of each request."""

    daemon_threads = True

    def __init__(self, port=0, status=200):
        super().__init__(("127.0.0.1", port), Answers)
        self.status, self.running, self.requests = status, True, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        self.running = False
        self.shutdown()
        self.server_close()


@pytest.fixture
def use_server(monkeypatch, tmp_path):
    """Make W&B's client use a port of this machine, without the user's own settings."""

    def use_server(port, key=KEY, init_timeout=60, finish_timeout=60):
        wandb.teardown()
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", key)
        # The long default is for busy machines; W&B waits this long only after a fault.
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", str(init_timeout))
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", str(finish_timeout))
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")

    yield use_server
    wandb.teardown()


@pytest.fixture
def fault(request):
    """The port of a faulty server."""
    if request.param == "rejects the key":
        server = Server(status=401)
        yield server.server_port
        server.stop()
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if request.param == "never answers":
            silent.listen()
        yield silent.getsockname()[1]


def commands_in(errors):
    """The upload commands in the printed warnings."""
    lines = [line for line in errors.splitlines() if line.startswith("warning: ")]
    return [shlex.split(line.partition("Upload it later with: ")[2]) for line in lines]


def upload(commands, port):
    """Execute the printed commands with a working server on a port; return the uploaded text."""
    server = Server(port)
    script = Path(sys.executable).with_name("wandb")
    try:
        for command in commands:
            argv = [script, *command[1:]]
            # The working directory is the run's folder, because the client writes its logs there.
            subprocess.run(argv, check=True, capture_output=True, timeout=120, cwd=command[-1])
    finally:
        server.stop()
    return b"".join(body for path, body in server.requests if path.endswith("/file_stream"))


@pytest.mark.parametrize(
    "fault", ["refuses connections", "never answers", "rejects the key"], indirect=True
)
def test_a_run_without_a_sound_server_continues_offline(fault, tmp_path, use_server, capfd):
    use_server(fault, init_timeout=LIMITS["WANDB_INIT_TIMEOUT"])
    logger = wandb_logger(tmp_path, "online", CONFIG)
    logger.log_metrics({"loss": 1.25}, 3)
    logger.finish()
    wandb.teardown()  # waits until W&B's own process has written everything
    (command,) = commands_in(capfd.readouterr().err)
    assert command[:2] == ["wandb", "sync"]
    assert {"loss": 1.25, "trainer/global_step": 3}.items() <= next(logged_rows(tmp_path)).items()


def test_a_malformed_key_does_not_end_the_run(tmp_path, use_server, capfd):
    use_server(9, key="short", init_timeout=4)
    wandb_logger(tmp_path, "online", CONFIG).finish()
    assert "The run continues offline" in capfd.readouterr().err


def test_a_run_that_loses_its_server_is_uploaded_later(tmp_path, use_server, capfd):
    server = Server()
    use_server(server.server_port, finish_timeout=5)
    logger = wandb_logger(tmp_path, "online", CONFIG)
    logger.log_metrics({"loss": 1.25}, 3)
    server.stop()
    logger.log_metrics({"loss": 1.125}, 4)
    logger.finish()
    commands = commands_in(capfd.readouterr().err)
    assert b"1.125" in upload(commands, server.server_port)


def contents(folder):
    """The name and bytes of each file in a folder, and of the members of zip archives."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((f"{path}/{x}", archive.read(x)) for x in archive.namelist())


class LosesServer(Callback):
    """Stops a server after the first epoch."""

    def __init__(self, server):
        self.server = server

    def on_train_epoch_end(self, trainer, pl_module):
        if self.server.running:
            self.server.stop()


# Without a server the run waits for W&B's limits: 26 seconds.
@pytest.mark.parametrize("sound", [True, pytest.param(False, marks=pytest.mark.trust)])
def test_no_file_of_a_run_contains_the_key(sound, experiment, use_server, capfd):
    """The run still writes its record, and its output does not contain the key."""
    server = Server()
    use_server(server.server_port, finish_timeout=60 if sound else 5)
    # The tables of the test set need more answers than the local server has.
    flags, callbacks = (["--test=false"], []) if sound else ([], [LosesServer(server)])
    run = experiment("--wandb=online", *flags, callbacks=callbacks, pictures=True)
    assert run.record.epochs == 2
    found = dict(contents(run.folder))
    assert {"last.ckpt", "result.json", "config.yaml"} <= {Path(name).name for name in found}
    assert any(name.endswith(".wandb") for name in found)
    assert [name for name, content in found.items() if KEY.encode() in content] == []
    errors = capfd.readouterr().err
    assert KEY not in run.output + errors
    sent = b"".join(body for _, body in server.requests)
    assert KEY.encode() not in sent
    if sound:
        assert b"train/loss" in sent
        assert "warning: " not in errors
        server.stop()
    else:
        folders = {Path(command[-1]).name for command in commands_in(errors)}
        assert folders == {path.parent.name for path in run.folder.glob("wandb/*run-*/*.wandb")}
        assert any("test/raw/accuracy" in row for row in logged_rows(run.folder))
