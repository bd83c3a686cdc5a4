"""What networks write, compared for a report: a picture of some, numbers of more, and all of it as a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.vocabulary import Vocabulary
from kdjax.json_files import write_whole
from kdjax.models.transformers.sampling import Sampling
from kdjax.tasks.language.drawing import draw_written
from kdjax.tasks.language.examples import Rows
from kdjax.tasks.language.scores import distinct, rouge_l
from kdjax.tasks.language.writing import continuations, prompt_text, reference_text

SCORED, SHOWN = 32, 6  # prompts that numbers are of, and those in the picture


def compare_written(
    networks: Mapping[str, Any], rows: Rows, folder: Path, *, prompt: int, sampling: Sampling, vocabulary: Vocabulary
) -> tuple[tuple[str, str, Path], ...]:
    """Has networks go on with the same prompts; writes `written.json` and `written.png` into a folder, and gives the picture with
    what it shows.

    Numbers of each, over 32 prompts: the share of pairs of tokens that are no repetition, and where the data has responses the
    mean ROUGE-L against them.

    Args:
      networks: by name, as `kdjax.load_trained` gives them; of none nothing is written.
      rows: whose prompts are taken.
      folder: of the report.
      prompt: tokens of a prompt; they go on for the rest of a row.
      sampling, vocabulary: of the task.
    """
    if not networks:
        return ()
    chosen = np.unique(np.linspace(0, len(rows) - 1, SCORED).astype(int))
    prompts = [prompt_text(rows, int(row), vocabulary, prompt) for row in chosen]
    references = [reference_text(rows, int(row), vocabulary) for row in chosen]
    said: dict[str, list[str]] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, network in networks.items():
        tokens = continuations(
            network, rows, chosen, prompt=prompt, count=rows.labels.shape[1] + 1 - prompt, sampling=sampling,
            vocabulary=vocabulary,
        )  # fmt: skip
        said[name] = [vocabulary.text(row) for row in tokens]
        numbers[name] = {"distinct_2": distinct(tokens, 2)}
        if rows.documents.responses is not None:
            each = [rouge_l(*pair) for pair in zip(said[name], references, strict=True)]
            numbers[name]["rouge_l"] = float(np.mean(each))
    kept = {"numbers": numbers, "prompts": prompts, "data": references, "written": said}
    write_whole(folder / "written.json", json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    few = np.unique(np.linspace(0, len(chosen) - 1, SHOWN).astype(int))
    pick = lambda texts: [texts[i] for i in few]
    picture = folder / "written.png"
    draw_written(pick(prompts), pick(references), {name: pick(texts) for name, texts in said.items()}, picture)
    scores = "; ".join(
        f"{name} " + ", ".join(f"{WORDS[what]} {value:.2f}" for what, value in values.items())
        for name, values in numbers.items()
    )
    heading = f"What was written behind {len(chosen)} prompts, by the first seed of each ({scores})"
    return ((heading, "ends of prompts, how the data goes on, and how each network does", picture),)


WORDS = {"distinct_2": "distinct pairs", "rouge_l": "ROUGE-L"}
