"""kdjax: knowledge distillation in JAX and Flax.

Nothing is imported here, so that `import kdjax.losses` costs no more than jax and chex.
"""

__version__ = "0.1.0"
