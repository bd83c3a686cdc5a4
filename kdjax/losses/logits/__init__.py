"""Losses between the logits of one example (or pixel, or token) and their targets: one row of scores against another."""
