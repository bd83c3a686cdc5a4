"""Methods that compare the two networks' logits, or train on the labels alone."""
