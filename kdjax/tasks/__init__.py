"""Tasks: what an example is and what is asked of a network, a folder each; `kdjax.tasks.task` is what they have in common.

A task of one's own subclasses `Task` (and `Model`), and is made known by `register`, so that saved experiments can be read.
"""

from kdjax.tasks.dataset import Dataset
from kdjax.tasks.registry import kinds, register
from kdjax.tasks.task import Model, NumberedViews, Task

__all__ = ["Dataset", "Model", "NumberedViews", "Task", "kinds", "register"]
