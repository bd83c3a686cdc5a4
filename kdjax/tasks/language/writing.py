"""What networks write themselves: prompts out of rows, rows out of what was written, and files of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.vocabulary import Vocabulary
from kdjax.json_files import write_whole
from kdjax.models.transformers.sampling import Beside, Sampling, Written, write
from kdjax.tasks.language.examples import Rows
from kdjax.types import Array, Batch, Network, Tree

AT_ONCE = 32


def prompts_of(inputs: dict[str, Array], begins: Array, size: int) -> tuple[Array, Array]:
    """Prompts `[B, size]`, filled up on the left, and which of their tokens are one, `[B, size]` bool.

    Args:
      inputs: rows `[B, L]`, of which a prompt is the tokens before `begins` that are of the same text as the last of them.
      begins: `[B]`, 1 or more.
      size: how many tokens at most; the last ones are kept.
    """
    columns = begins[:, None] - size + jnp.arange(size, dtype=jnp.int32)[None]
    take = lambda x: jnp.take_along_axis(x, jnp.maximum(columns, 0), axis=1)
    segments = take(inputs["segment_ids"])
    return take(inputs["input_ids"]), (columns >= 0) & (segments > 0) & (segments == segments[:, -1:])


def written_batch(batch: Batch, ids: Array, mask: Array, written: Written) -> Batch:
    """A batch of the same shapes whose rows are prompts and what was written behind them, of which the latter is learned; none of
    it is a label. The targets "written" say so, and "drawn" with which log-probability each token was drawn.

    Args:
      batch: the rows that the prompts are of, `[B, L]`.
      ids, mask: prompts `[B, P]`.
      written: what followed, `[B, L + 1 - P]`.
    """
    tokens = jnp.concatenate([ids.astype(jnp.int32), written.tokens], axis=1)
    there = jnp.concatenate([mask, written.there], axis=1)
    shown = {
        "input_ids": tokens[:, :-1],
        "segment_ids": there[:, :-1],
        "position_ids": jnp.maximum(jnp.cumsum(there[:, :-1], axis=1) - 1, 0),
    }
    learned = there[:, 1:] & (jnp.arange(1, tokens.shape[1])[None] >= ids.shape[1])
    drawn = jnp.concatenate([jnp.zeros(ids.shape, jnp.float32), written.drawn_log_probs], axis=1)[:, 1:]
    like = lambda x, old: x.astype(old.dtype)
    return dataclasses.replace(
        batch, inputs=jax.tree.map(like, shown, dict(batch.inputs)), elements=learned, labelled=jnp.zeros_like(batch.labelled),
        targets={
            "labels": tokens[:, 1:], "begins": jnp.full_like(batch.target("begins"), ids.shape[1]),
            "written": jnp.ones_like(batch.target("written")), "drawn": drawn.astype(batch.target("drawn").dtype),
        },
    )  # fmt: skip


def rewritten(
    network: Network, params: Tree, state: Tree, batch: Batch, key: Array, *, prompt: int, sampling: Sampling,
    vocabulary: Vocabulary, beside: Beside | None = None,
) -> Batch:  # fmt: skip
    """`written_batch` of what a network writes behind the prompts of a batch, where `beside` is given drawn from a mixture with
    that; each row by the key and its own number."""
    ids, mask = prompts_of(batch.inputs, batch.target("begins"), prompt)
    written = write(
        network, params, state, ids, mask, count=batch.elements.shape[1] + 1 - prompt, sampling=sampling, key=key,
        numbers=batch.known_index("Draws are keyed"), ends=(vocabulary.end,), padding=vocabulary.padding,
        beside=beside,
    )  # fmt: skip
    return written_batch(batch, ids, mask, written)


def continuations(
    trained: Any, rows: Rows, chosen: np.ndarray, *, prompt: int, count: int, sampling: Sampling, vocabulary: Vocabulary,
    seed: int = 0,
) -> list[list[int]]:  # fmt: skip
    """The tokens that a finished network writes behind the prompts of some rows, the end left out.

    Args:
      trained: what `kdjax.load_trained` gives.
      rows: of the data.
      chosen: which rows; what is written of each depends on the seed and its number alone.
      prompt, count: tokens of a prompt, and to be written at most.
      sampling, vocabulary: of the task.
      seed: of the draws.
    """
    key, variables = jax.random.key(seed), trained.variables

    @jax.jit
    def run(variables, ids, mask, numbers):
        return write(
            trained.network, variables.params, variables.state, ids, mask, count=count, sampling=sampling, key=key,
            numbers=numbers, ends=(vocabulary.end,), padding=vocabulary.padding,
        )  # fmt: skip

    found: list[list[int]] = []
    for start in range(0, len(chosen), AT_ONCE):
        some = chosen[start : start + AT_ONCE]
        full = np.resize(some, AT_ONCE) if len(chosen) > AT_ONCE else some  # one program for all
        read = rows.read(full)
        ids, mask = prompts_of(
            jax.tree.map(jnp.asarray, read["inputs"]), jnp.asarray(read["targets"]["begins"]), prompt
        )
        written = jax.device_get(run(variables, ids, mask, full.astype(np.int32)))
        for tokens, there in zip(written.tokens[: len(some)], written.there, strict=False):
            found.append([int(token) for token in tokens[there] if token != vocabulary.end])
    return found


def prompt_text(rows: Rows, row: int, vocabulary: Vocabulary, prompt: int) -> str:
    """The prompt of a row as text."""
    read = rows.read(np.array([row]))
    ids, mask = prompts_of(jax.tree.map(jnp.asarray, read["inputs"]), jnp.asarray(read["targets"]["begins"]), prompt)
    return vocabulary.text(np.asarray(ids)[np.asarray(mask)])


def reference_text(rows: Rows, row: int, vocabulary: Vocabulary) -> str:
    """What follows the prompt of a row in the data, in the same text."""
    begin, ids = int(rows.begins[row]), rows.inputs["input_ids"][row]
    same = rows.inputs["segment_ids"][row] == rows.inputs["segment_ids"][row][begin - 1]
    following = np.flatnonzero(same & (np.arange(len(ids)) >= begin))
    last = (
        [int(rows.labels[row, -1])]
        if len(following) and following[-1] == len(ids) - 1 and rows.learned[row, -1]
        else []
    )
    return vocabulary.text([*ids[following].tolist(), *last])


def write_responses(trained: Any, task: Any, path: str | Path, *, split: str = "train", seed: int = 0) -> int:
    """Has a finished network respond to the prompts of a data set, once, and keeps that as a data set of prompts and responses:
    what a student of sequence-level distillation learns from as from labels (Kim and Rush, EMNLP 2016, arXiv 1606.07947).

    Args:
      trained: the teacher, of `kdjax.load_trained(run, "teacher")`.
      task: a `Language` whose prompts are taken, in the teacher's own tokens.
      path: a .jsonl, which is written whole or not at all.
      split: "train" or "held", what is evaluated.
      seed: of the draws.

    Returns:
      How many pairs were written; a prompt that nothing was written to is left out.
    """
    own = getattr(trained.task, "tokenizer", task.tokenizer)
    task = dataclasses.replace(task, tokenizer=own, beside="")  # prompts and responses are texts, whose ever tokens
    dataset = task.load()
    rows = dataset.train if split == "train" else dataset.held
    prompt, vocabulary = task.prompt_size, task.vocabulary
    said = continuations(
        trained, rows, np.arange(len(rows)), prompt=prompt, count=task.length + 1 - prompt, sampling=task.sampling,
        vocabulary=vocabulary, seed=seed,
    )  # fmt: skip
    lines = []
    for row, tokens in enumerate(said):
        before, behind = prompt_text(rows, row, vocabulary, prompt), vocabulary.text(tokens)
        if before.strip() and behind.strip():
            lines.append(json.dumps({"prompt": before, "response": behind}, ensure_ascii=False))
    write_whole(Path(path), "\n".join(lines) + "\n")
    return len(lines)
