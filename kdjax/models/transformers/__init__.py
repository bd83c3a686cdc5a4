"""Transformers for text: one block for encoders and decoders, read from folders of Hugging Face and written as such."""

from kdjax.models.transformers.architecture import Architecture, Head
from kdjax.models.transformers.folders import Pretrained, read_folder, write_folder
from kdjax.models.transformers.network import transformer
from kdjax.models.transformers.rope import Rope
from kdjax.models.transformers.sampling import GREEDY, Sampling, Written, write
from kdjax.models.transformers.sizes import SIZES
from kdjax.models.transformers.transformer import Transformer

__all__ = [
    "GREEDY", "SIZES", "Architecture", "Head", "Pretrained", "Rope", "Sampling", "Transformer", "Written", "read_folder",
    "transformer", "write", "write_folder",
]  # fmt: skip
