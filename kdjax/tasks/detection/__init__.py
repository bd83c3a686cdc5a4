"""Object detection: from the outputs of a dense head to boxes, and how good these are."""
