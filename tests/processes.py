"""Child processes that have the notebook loaded, to be killed.

with Nursery("test_survival") as nursery:
    child = nursery.start("job", {"NAME": "value"}, argument=3)

One process loads the notebook, which takes seconds, and forks a child for each job
before anything is computed. A job is a function `job(nb, argument=3)` of the module.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


class Child:
    """A forked process; `output` is what it printed, `result` what its job returned."""

    def __init__(self, nursery, pid, folder):
        self.nursery, self.pid, self.folder, self.code = nursery, pid, folder, None

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
            self.code = self.nursery.ask({"wait": self.pid})
        return self.code


class Nursery:
    """The process that loads the notebook once and forks."""

    def __init__(self, module, **environment):
        self.children, self.folder = [], tempfile.TemporaryDirectory()
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, __file__, module]
        environment = {**os.environ, **environment}
        self.process = subprocess.Popen(command, env=environment, **streams)

    def ask(self, order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the process that loads the notebook has ended"
        return json.loads(answer)

    def start(self, job, environment=(), **arguments):
        folder = Path(self.folder.name, str(len(self.children)))
        folder.mkdir()
        order = {"job": job, "environment": dict(environment), "arguments": arguments}
        pid = self.ask({**order, "folder": str(folder)})
        self.children.append(Child(self, pid, folder))
        return self.children[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.folder, self.process:  # which close and remove what is theirs
            for child in self.children:
                child.kill()


def work(nb, module, order):
    """Do one job in the forked child, which ends here, at the latest after 300 s."""
    signal.alarm(300)
    code, folder = 1, Path(order["folder"])
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        os.environ.update(order["environment"])
        result = getattr(module, order["job"])(nb, **order["arguments"])
        (folder / "result").write_text(json.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":  # fork for every order; tell process ids and exit codes
    import keras
    from conftest import load_notebook

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    list_devices = keras.distribution.list_devices
    keras.distribution.list_devices = list  # or threads start, which no fork keeps
    nb, module = load_notebook(), importlib.import_module(sys.argv[1])
    keras.distribution.list_devices = list_devices
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif not (answer := os.fork()):
            work(nb, module, order)
        print(json.dumps(answer), file=answers, flush=True)
