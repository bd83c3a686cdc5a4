"""Methods that compare feature maps and embeddings, with the projectors they train."""
