"""The command line within this process: what a process of its own would answer, without the seconds that it takes to begin."""

from __future__ import annotations

import contextlib
import io
import subprocess

from jobs import cli


def topicscale(*arguments: str) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as left:  # argparse's
            code = left.code if isinstance(left.code, int) else 1
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
