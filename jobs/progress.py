"""What a person or a log collector sees while a job runs: bars in a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from topicscale.texts import printable

INTERVAL = 10.0
"""Seconds between two lines of a stage's progress where there is no terminal."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and task.total else "", style="cyan")


class Bar:
    """One stage under way. ``done`` counts finished rows, ``partial`` those of units still in flight."""

    def __init__(self, ui: Ui, stage: str, total: int | None, unit: str) -> None:
        self._ui, self.stage, self.total, self.unit = ui, stage, total, unit
        self._done, self._shown, self._began, self._last = 0, 0, time.monotonic(), time.monotonic()
        self.task: Any = None

    def advance(self, rows: int) -> None:
        """Count finished rows."""
        self._done += rows
        self._show(self._done)

    def partial(self, rows: int) -> None:
        """Show rows of units in flight on top of the finished ones."""
        self._show(self._done + rows)

    def _show(self, now: int) -> None:
        # never backwards: a unit that is tried again starts over
        self._shown = max(self._shown, now)
        if self.task is not None:
            self._ui.bars.update(self.task, completed=self._shown)
        elif time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            seconds = self._last - self._began
            rate = self._shown / seconds
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            left = f", {max(0, self.total - self._shown) / rate:,.0f} s left" if self.total and rate else ""
            of = f" of {self.total:,}" if self.total else ""
            self._ui.log("progress", f"{self.stage}: {self._shown:,}{of} {self.unit}, {speed}/s{left}", stage=self.stage, rows=self._shown)


class _Console(Console):
    """A console whose reader may leave without ending the job."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Ui:
    """Where messages go: always the error stream, so that results alone are on the standard output.

    Parameters
    ----------
    mode : {"auto", "json", "quiet"}
        ``auto`` draws bars in a terminal and prints lines elsewhere; ``quiet`` prints warnings and errors alone.
    """

    def __init__(self, mode: Literal["auto", "json", "quiet"] = "auto") -> None:
        self.mode = mode
        self._console = _Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self.bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    def log(self, event: str, message: str, **fields: Any) -> None:
        """Print one line."""
        if self.mode == "json":
            record = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": event, "message": message, **fields}
            with contextlib.suppress(BrokenPipeError):  # whoever read along has left, which is no reason to end the job
                print(json.dumps(record, default=str), file=sys.stderr, flush=True)
        elif self.mode != "quiet" or event in ("warning", "error"):
            style = {"warning": "yellow", "error": "bold red"}.get(event)
            # markup off: messages may hold brackets of user text
            self._console.print(printable(message), style=style, markup=False)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, *, unit: str = "documents") -> Iterator[Bar]:
        """Show a stage while the block runs, and one line when it ends."""
        bar = Bar(self, name, total, unit)
        drawing = self.mode == "auto" and self._console.is_terminal
        if drawing:
            self.bars.start()
            bar.task = self.bars.add_task(name, total=total)
        try:
            yield bar
        finally:
            if drawing:
                self.bars.remove_task(bar.task)
                if not self.bars.tasks:
                    self.bars.stop()
