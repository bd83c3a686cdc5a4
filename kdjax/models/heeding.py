"""Whether an NNX model heeds that it trains: whether its batch statistics are written and its dropout drops."""

from typing import Any

from flax import nnx

from kdjax.models import modes


class Heeding:
    """Watches one call, also of layers inside `nnx.scan`, `nnx.vmap`, `nnx.remat` and `nnx.jit`.

    These hand out new arrays for what they left untouched, so that nothing can be told by comparing before and after. What is
    watched is the act: a hook of each statistic, and a subclass of each dropout, which they take along.

    Attributes:
      wrote: whether any batch statistic was written.
      dropped: whether any dropout dropped.
    """

    def __init__(self, module: nnx.Module):
        """Prepares a module that is thrown away after the call."""
        self.wrote = self.dropped = False
        statistics = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.BatchStat)]
        dropouts = [node for _, node in nnx.iter_modules(module) if _drops(node)]
        self.statistics, self.dropouts = bool(statistics), bool(dropouts)
        for variable in statistics:
            variable.set_metadata(on_set_value=(*_hooks(variable), self._written))
        for node in dropouts:
            node.__class__ = self._noting(type(node))

    def unheard(self, module: nnx.Module) -> str:
        """What the call left as in evaluation, or ""."""
        if self.statistics and not self.wrote and not self._replaced(module):
            return modes.STATISTICS
        return modes.DROPOUT if self.dropouts and not self.dropped else ""

    @property
    def moved(self) -> str:
        """What the call did that belongs to training, or ""."""
        return modes.MOVES if self.wrote else modes.DROPS if self.dropped else ""

    def _replaced(self, module: nnx.Module) -> bool:
        """Whether a statistic is another variable than before, which has no hook."""
        statistics = (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.BatchStat))
        return any(self._written not in _hooks(variable) for variable in statistics)

    def _written(self, variable: nnx.Variable, value: Any) -> Any:
        self.wrote = True
        return value

    def _noting(self, cls: type) -> type:
        def __call__(node, *args, **kwargs):
            told = kwargs.get("deterministic")
            self.dropped |= (node.deterministic if told is None else told) is not True
            return cls.__call__(node, *args, **kwargs)

        return type(cls.__name__, (cls,), {"__call__": __call__})


def _drops(node: nnx.Module) -> bool:
    """Whether it is a dropout, or an attention that has one."""
    rate = node.rate if isinstance(node, nnx.Dropout) else getattr(node, "dropout_rate", 0)
    return isinstance(node, nnx.Dropout | nnx.MultiHeadAttention) and rate > 0


def _hooks(variable: nnx.Variable) -> tuple:
    found = variable.get_metadata().get("on_set_value", ())
    return found if isinstance(found, tuple) else (found,)
