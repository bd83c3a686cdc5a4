"""Losses of token sequences: divergences over a vocabulary, masked means, top-k teachers, logits never held at once."""
