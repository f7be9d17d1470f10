"""Child processes that have the notebook loaded, to be killed.

with nursery("test_survival") as start:
    child = start("job", {"NAME": "value"}, argument=3)

One process loads the notebook, which takes seconds, and forks a child for each job
before anything is computed. A job is a function `job(nb, argument=3)` of the module.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path
from unittest.mock import patch


class Child:
    """A forked process; `output` is what it printed, `result` what its job returned."""

    def __init__(self, connection, folder):
        self.connection, self.folder, self.code = connection, folder, None
        self.pid = connection.recv()

    @property
    def output(self):
        return (self.folder / "output").read_text(errors="replace")

    @property
    def result(self):
        assert self.wait() == 0, f"exit code {self.code}\n{self.output}"
        return json.loads((self.folder / "result").read_text())

    def kill(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self):
        """Return its exit code, as `subprocess` gives it."""
        if self.code is None:
            self.code = self.connection.recv()
        return self.code


@contextlib.contextmanager
def nursery(module, **environment):
    """Yield a function that starts a child, one after the other."""
    connection, other_end = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn").Process
    with patch.dict(os.environ, environment), other_end:
        spawn(target=serve, args=(other_end, module)).start()
    children = []

    def start(job, environment=(), **arguments):
        folder = Path(tempfile.mkdtemp(dir=place))
        connection.send((job, arguments, dict(environment), folder))
        children.append(Child(connection, folder))
        return children[-1]

    with tempfile.TemporaryDirectory() as place, connection:
        yield start
        for child in children:
            child.kill()
        connection.send(None)


def serve(connection, module):
    """Fork for every order; tell the child's process id and then its exit code."""
    import keras
    from conftest import load_notebook

    with patch.object(keras.distribution, "list_devices", list):
        nb = load_notebook()  # starts no threads, which no fork keeps
    module = importlib.import_module(module)
    fork = multiprocessing.get_context("fork").Process
    while order := connection.recv():
        child = fork(target=work, args=(nb, module, *order))
        child.start()
        connection.send(child.pid)
        child.join()
        connection.send(child.exitcode)


def work(nb, module, job, arguments, environment, folder):
    """Do one job in a forked child, which ends at the latest after 300 s."""
    signal.alarm(300)
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    result = getattr(module, job)(nb, **arguments)
    (folder / "result").write_text(json.dumps(result))
