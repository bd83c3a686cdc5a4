"""Losses between feature maps and embeddings of one example."""
