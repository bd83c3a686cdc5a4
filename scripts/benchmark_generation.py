"""How fast a decoder writes: `kdjax.models.transformers.write`, a plain loop of jitted steps, and Hugging Face's `generate`.

    python scripts/benchmark_generation.py --json generation.json     # generate is measured where transformers and torch are

The same random weights, prompts and greedy choices everywhere; tokens are compared. `write` is one program, a loop of fixed
length over kept keys and values. The plain loop calls the same network's jitted steps from Python, a token at a time. `generate`
runs under PyTorch with its own cache, and its number of threads. All are warmed up, then take turns in rounds; use an otherwise
idle machine.
"""

import argparse
import dataclasses
import functools
import importlib.util
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from benchmarking import timing
from benchmarking.options import at_least, new_file

from kdjax.models.transformers import GREEDY, Architecture, Head, transformer, write, write_folder
from kdjax.models.transformers.sizes import llama
from kdjax.types import Tree

AGREE = 0.99  # share of rows whose tokens are the same: rounding may turn a near tie


@dataclasses.dataclass(frozen=True)
class Setting:
    """A decoder of Llama's kind, its prompts, how many tokens it writes, and the rounds in which programs take turns."""

    width: int = 256
    depth: int = 4
    vocabulary: int = 8192
    batch_size: int = 8
    prompt: int = 32
    count: int = 128
    rounds: int = 10

    @property
    def architecture(self) -> Architecture:
        heads = max(2, self.width // 64)
        return llama(self.width, self.depth, heads, heads // 2, 3 * self.width, vocabulary=self.vocabulary)


def stepwise(network, variables: Tree, count: int) -> Callable:
    """`(ids, mask) -> tokens`: the most likely token, one jitted call after the other."""
    begin = jax.jit(lambda *given: network.parts["begin"](*variables, *given))

    @functools.partial(jax.jit, donate_argnums=2)
    def advance(token, there, cache):
        said, cache = network.parts["advance"](*variables, token[:, None], there[:, None], cache)
        return jnp.argmax(said, axis=-1).astype(jnp.int32), cache

    def loop(ids, mask):
        room = jnp.concatenate([mask != 0, jnp.zeros((len(ids), count), bool)], axis=1)
        said, cache = begin(ids, room)
        token, there, tokens = jnp.argmax(said, axis=-1).astype(jnp.int32), jnp.ones(len(ids), bool), []
        for _ in range(count):
            tokens.append(token)
            token, cache = advance(token, there, cache)
        return jnp.stack(tokens, axis=1)

    return loop


def of_transformers(setting: Setting, head: Head, params: Tree, prompts: np.ndarray) -> Callable:
    """`() -> tokens` of Hugging Face's implementation with these weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, setting.architecture, head, params)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts.astype(np.int64))
    options = {"do_sample": False, "max_new_tokens": setting.count, "min_new_tokens": setting.count, "pad_token_id": 0,
               "eos_token_id": None}  # fmt: skip

    def generate():
        with torch.no_grad():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, prompts.shape[1] :]

    return generate


def table(setting: Setting) -> list[timing.Row]:
    """Tokens a second, and by how much the others are slower."""
    head = Head(kind="tokens")
    network = transformer(setting.architecture, head)
    variables = jax.jit(network.init)(jax.random.key(0))
    shape = setting.batch_size, setting.prompt
    prompts = np.random.default_rng(0).integers(0, setting.vocabulary, shape).astype(np.int32)
    ids, mask = jnp.asarray(prompts), jnp.ones(shape, jnp.int32)
    written = jax.jit(lambda ids, mask: write(network, *variables, ids, mask, count=setting.count, sampling=GREEDY))
    loop = stepwise(network, variables, setting.count)
    tokens = np.asarray(written(ids, mask).tokens)
    subjects = [timing.Subject("write", lambda: written(ids, mask)), timing.Subject("loop", lambda: loop(ids, mask))]
    found = {"loop": np.asarray(loop(ids, mask))}
    installed = importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")
    if installed:
        generate = of_transformers(setting, head, jax.device_get(variables[0]), prompts)
        found["transformers"] = generate().numpy()
        subjects.append(timing.Subject("transformers", generate, wait=lambda result: result))
    seconds = timing.turns(subjects, setting.rounds, budget=240)
    speed = lambda name: setting.batch_size * setting.count / seconds[name]
    rows = [timing.of_samples("write", speed("write"), unit="tokens/s")]
    titles = {
        "loop": "a plain loop of jitted steps ÷ write, seconds",
        "transformers": "transformers' generate ÷ write, seconds",
    }
    for name, title in titles.items():
        if name not in found:
            rows.append(timing.Row(title, note="transformers or torch is not installed"))
            continue
        alike = float(np.mean(np.all(found[name] == tokens, axis=1)))
        rows.append(timing.of_samples(
            title, seconds[name] / seconds["write"], least=1.0, note=f"{np.median(speed(name)):,.0f} tokens/s",
            check=f"{alike:.0%} of the rows have the same tokens", correct=alike >= AGREE,
        ))  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    helps = {"width": "of the decoder", "depth": "its blocks", "vocabulary": "its kinds of tokens", "batch_size": "prompts",
             "prompt": "tokens of each", "count": "tokens that are written", "rounds": "at most"}  # fmt: skip
    for name, what in helps.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=at_least(1), default=getattr(Setting(), name), help=what
        )
    parser.add_argument("--json", type=new_file, help="also write facts and rows here")
    sizes = vars(parser.parse_args(arguments))
    path = sizes.pop("json")
    setting = Setting(**sizes)
    found = timing.facts(**dataclasses.asdict(setting))
    print(
        f"{timing.in_words(found)}; {setting.depth} blocks of width {setting.width}, {setting.vocabulary:,} kinds of tokens, "
        f"{setting.batch_size} prompts of {setting.prompt} tokens, {setting.count} written, at most {setting.rounds} rounds\n",
        flush=True,
    )
    rows = timing.run_rows({"generation": functools.partial(table, setting)}, functools.partial(print, flush=True))
    timing.write(path, found, rows)
    return timing.status(rows)


if __name__ == "__main__":
    sys.exit(main())
