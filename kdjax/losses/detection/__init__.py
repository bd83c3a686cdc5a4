"""Losses of object detectors, and the boxes, assignments and regions that they are taken over."""
