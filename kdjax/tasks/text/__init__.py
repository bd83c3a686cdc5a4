"""Texts with classes: sentences, or pairs of sentences, and transformers that classify them."""

from kdjax.data.columns import Columns
from kdjax.tasks.registry import register
from kdjax.tasks.text.data import Text
from kdjax.tasks.text.networks import TextNetwork

__all__ = ["Columns", "Text", "TextNetwork"]

register(Text, TextNetwork, Columns)
