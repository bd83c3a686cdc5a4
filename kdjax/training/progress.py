"""What a person sees while a phase trains: a bar with time left and examples/s, or a line now and then."""

import contextlib
import html
import os
import sys
import time
from typing import Protocol

from kdjax.terminal import visible


class Progress(Protocol):
    """What the loop tells."""

    def start(self, name: str, step: int, total: int, batch_size: int, noun: str) -> None: ...
    def advance(self, step: int) -> None: ...
    def show(self, metrics: dict[str, float], rate: float) -> None: ...
    def evaluated(self, said: str) -> None: ...
    def finish(self) -> None: ...


class Silent:
    """Shows nothing."""

    def start(self, name, step, total, batch_size, noun):
        pass

    def advance(self, step):
        pass

    def show(self, metrics, rate):
        pass

    def evaluated(self, said):
        pass

    def finish(self):
        pass


class Heard:
    """Shows what another one does as long as there is somebody to show it to: a pipe that is closed, a terminal that is gone or
    a full disk behind either ends the lines, and not the training."""

    def __init__(self, shown: Progress):
        self.shown = shown

    def start(self, name, step, total, batch_size, noun):
        self._try("start", visible(name), step, total, batch_size, noun)

    def advance(self, step):
        self._try("advance", step)

    def show(self, metrics, rate):
        self._try("show", metrics, rate)

    def evaluated(self, said):
        self._try("evaluated", said)

    def finish(self):
        self._try("finish")

    def _try(self, name: str, *given) -> None:
        try:
            getattr(self.shown, name)(*given)
        except OSError as error:
            self.shown = Silent()
            with contextlib.suppress(OSError):
                print(f"kdjax: progress cannot be shown any more ({error.strerror}); the run goes on.", file=sys.stderr)


class Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, seconds: float = 10.0, file=None):
        self.seconds, self.file = seconds, file or sys.stdout
        self.total: int | None = None

    def start(self, name, step, total, batch_size, noun):
        self.name, self.begin, self.step, self.total, self.batch_size = name, step, step, total, batch_size
        self.noun, self.loss, self.metric, self.rate = noun, "", "", 0.0
        self.said = time.perf_counter()

    def advance(self, step):
        self.step = step
        if time.perf_counter() - self.said > self.seconds:
            self._say()

    def _say(self):
        self.said = time.perf_counter()
        line = f"{self.name}: step {self.step}/{self.total}"
        if self.rate:
            left = (self.total - self.step) * self.batch_size / self.rate
            line += f", {self.rate:,.0f} {self.noun}/s, {left:.0f} s left"
        print(", ".join(x for x in (line, self.loss, self.metric) if x), file=self.file, flush=True)

    def show(self, metrics, rate):
        self.loss, self.rate = f"loss {metrics['loss']:.3f}", rate or self.rate

    def evaluated(self, said):
        self.metric = said

    def finish(self):
        if self.total is not None:
            self._say()
        self.total = None


class _Facts:
    """What a bar says beside itself, as texts: the rate, the loss, the metric."""

    def show(self, metrics, rate):
        self.loss = f"loss {metrics['loss']:.3f}"
        self.rate = f"{rate:,.0f} {self.noun}/s" if rate else self.rate

    def evaluated(self, said):
        self.metric = said


class Bar(_Facts):
    """A progress bar on a terminal."""

    def __init__(self):
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._columns = (
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=12), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True), TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._make = RichProgress
        self._bar = None

    def start(self, name, step, total, batch_size, noun):
        from rich.markup import escape

        self.noun, self.loss, self.metric, self.rate = noun, "", "", ""
        self._bar = self._make(*self._columns)
        self._bar.start()
        self._task = self._bar.add_task(escape(name), total=total, completed=step, rate="", note="compiling")

    def advance(self, step):
        self._bar.update(self._task, completed=step, rate=self.rate, note=f"{self.loss} {self.metric}".strip())

    def finish(self):
        if self._bar is not None:
            self._bar.stop()


class Page(_Facts):
    """A bar in a notebook, drawn over itself."""

    def __init__(self, seconds: float = 0.5):
        self.seconds, self._shown, self._total = seconds, None, None

    def start(self, name, step, total, batch_size, noun):
        from IPython.display import HTML, display

        self.name, self.step, self.noun, self.loss, self.metric, self.rate = name, step, noun, "compiling", "", ""
        self._total, self._html, self._said = total, HTML, 0.0
        self._shown = display(self._html(self._text()), display_id=True)

    def advance(self, step):
        self.step = step
        if time.perf_counter() - self._said > self.seconds:
            self._draw()

    def finish(self):
        if self._shown is not None:
            self._draw()
        self._shown = None

    def _draw(self):
        self._said = time.perf_counter()
        self._shown.update(self._html(self._text()))

    def _text(self) -> str:
        facts = (f"{self.step}/{self._total}", self.rate, self.loss, self.metric)
        bar = f'<progress value="{self.step}" max="{self._total}"></progress>'
        return f"<b>{html.escape(self.name)}</b> {bar} {html.escape(', '.join(filter(None, facts)))}"


def make_progress() -> Progress:
    """A bar on a terminal or in a notebook, lines elsewhere; also where a notebook runs a command (`!kdjax`), for it shows every
    state of a bar below the one before."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        return Page()
    return Bar() if sys.stdout.isatty() and "JPY_PARENT_PID" not in os.environ else Lines()
