"""Language: texts, or responses to prompts, token by token, and decoders that write them."""

from kdjax.models.transformers.sampling import Sampling
from kdjax.tasks.language.data import Language
from kdjax.tasks.language.networks import LanguageNetwork
from kdjax.tasks.language.writing import write_responses
from kdjax.tasks.registry import register

__all__ = ["Language", "LanguageNetwork", "Sampling", "write_responses"]

register(Language, LanguageNetwork, Sampling)
