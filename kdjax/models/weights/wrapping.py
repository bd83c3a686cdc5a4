"""What checkpoints wrap a PyTorch state dict in."""

from collections.abc import Mapping
from typing import Any

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")
COUNT = "n_averaged"  # which torch.optim.swa_utils.AveragedModel keeps beside the weights


def unwrapped(checkpoint: Mapping[str, Any], *, ema: bool = False) -> Mapping[str, Any]:
    """The state dict of a checkpoint: that of its entry "model", "state_dict" or the like, without the prefixes that
    `DataParallel`, `torch.compile` and averaging put before every name.

    Args:
      checkpoint: what `torch.load` gave, or the state dict itself.
      ema: take the running average of the weights ("model_ema", "state_dict_ema", "ema"). Without it the average is taken where
        there is nothing else.

    Raises:
      ValueError: it is no dict, has a name that is no text, or no average though one is asked for.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the state dict is a {type(checkpoint).__name__}, expected names with arrays")
    averaged = False
    for _ in WRAPPERS:  # one in the other
        order = (*AVERAGED, *WRAPPERS) if ema and not averaged else (*WRAPPERS, *AVERAGED)
        wrapper = next((w for w in order if isinstance(checkpoint.get(w), Mapping)), None)
        checkpoint = checkpoint if wrapper is None else checkpoint[wrapper]
        averaged = averaged or wrapper in AVERAGED
    if ema and not averaged:
        raise ValueError(
            f"the checkpoint has no running average of the weights ({', '.join(AVERAGED)}); leave ema out."
        )
    unnamed = [name for name in checkpoint if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"the state dict has an entry {unnamed[0]!r}, whose name is no text")
    checkpoint = {name: value for name, value in checkpoint.items() if name != COUNT}
    for prefix in PREFIXES * 2:  # one in the other, in either order
        if checkpoint and all(name.startswith(prefix) for name in checkpoint):
            checkpoint = {name.removeprefix(prefix): value for name, value in checkpoint.items()}
    return checkpoint
