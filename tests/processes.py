"""Child processes that have the notebook loaded already, to be killed or to work together.

with Nursery("test_survival") as nursery:
    child = nursery.start("job", {"NAME": "value"}, argument=3)
    child.kill()
    child.wait()        its exit code, as `subprocess` gives it; what it printed is in child.output

One process loads the notebook, which takes seconds, and forks a child for each job before anything
is computed. A job is a function `job(nb, argument=3)` of the module named.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

PATIENCE = 300  # seconds that a child may take


class Child:
    """A forked process; `pid`, `output` and, once it has ended, `code`, and `result` if it is 0."""

    def __init__(self, nursery, pid, folder):
        self.nursery, self.pid, self.folder, self.code = nursery, pid, folder, None

    @property
    def output(self):
        return (self.folder / "output").read_text(errors="replace")

    @property
    def result(self):
        """What the job returned."""
        assert self.wait() == 0, f"exit code {self.code}\n{self.output}"
        return json.loads((self.folder / "result").read_text())

    def running(self):
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})
        return self.code is None

    def kill(self):
        """Kill it as `kill -9` does, if it is still running."""
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self):
        end = time.monotonic() + PATIENCE
        while self.running():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"not over after {PATIENCE} s\n{self.output}")
            time.sleep(0.02)
        return self.code


class Nursery:
    """The process that loads the notebook once and forks."""

    def __init__(self, module, **environment):
        self.children, self.folder = [], tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, __file__, module], env={**os.environ, **environment}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the process that loads the notebook has ended"
        return json.loads(answer)

    def start(self, job, environment=(), **arguments):
        folder = Path(self.folder.name, str(len(self.children)))
        folder.mkdir()
        order = {"job": job, "environment": dict(environment), "arguments": arguments}
        self.children.append(Child(self, self.ask({**order, "folder": str(folder)}), folder))
        return self.children[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            for child in self.children:
                child.kill()
        finally:
            self.process.stdin.close()
            self.process.wait(30)
            self.process.stdout.close()
            self.folder.cleanup()


def work(nb, module, order):
    """Do one job in the forked child, which ends here."""
    code, folder = 1, Path(order["folder"])
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.environ.update(order["environment"])
        result = getattr(module, order["job"])(nb, **order["arguments"])
        (folder / "result").write_text(json.dumps(result))
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def serve():
    """Fork for every order on standard input; tell process ids and exit codes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    nb, module = load_notebook(), importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                work(nb, module, order)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    from conftest import load_notebook

    serve()
