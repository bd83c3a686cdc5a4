"""Studies of what distillation transfers: one command each, a page with a verdict, every number as data.

A study is a module with `study(size, folder, ...)`, which returns a `Finding`; `STUDIES` says where it is and what it asks.
"""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STUDIES = {
    "affinity": "which affinity, which normalisation, which loss?",
    "entropy": "is distillation label smoothing, by how sure students are?",
    "fidelity": "does the student match its teacher, and could it?",
    "limits": "when is KD logit matching, when hard labels, what kind of smoothing is it?",
    "properties": "what implicit properties of a teacher does its student have?",
    "regulariser": "does distillation transfer knowledge, or regularise?",
    "smoothing": "is label smoothing of the teacher incompatible with distillation?",
    "sources": "features, logits or gradients: which source of knowledge helps, and when?",
    "survey": "which methods win at one budget?",
    "variance": "does distillation reduce the variance of gradients?",
}


def run_study(
    name: str, folder: Path, size: str = "default", *, data_dir: str | None = None, progress: Any = None,
    announce: Callable[[str], None] = lambda line: None, resume: bool = False, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Runs a study and writes its page; returns the page's path.

    Args:
      name: one of `STUDIES`.
      folder: of the study.
      size: "tiny" to see that it works, "default" for minutes to an hour, "full" for longer than one waits, on two CPU cores.
      data_dir: folder of prepared data sets.
      progress, announce: what a person sees.
      resume: keep what trained networks there are in the folder; `variance`, `sources` and `entropy` keep none and begin anew.
      overwrite: write the page and train the networks anew.

    Raises:
      ExperimentError: there is no such study, or one in the folder.
    """
    from kdjax.experiment.spec import ExperimentError
    from kdjax.studies.finding import check_folder, write_page

    if name not in STUDIES:
        raise ExperimentError(f"There is no study {name!r}; there are {', '.join(STUDIES)}.")
    check_folder(folder, size, overwrite=overwrite, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    module = importlib.import_module(f"kdjax.studies.{name}")
    found = module.study(size, folder, overwrite=overwrite, data_dir=data_dir, announce=announce, progress=progress)
    return write_page(folder, name, found, size=size, seconds=time.monotonic() - began)
