"""Objectives of dense detectors: what they read is a `kdjax.models.detectors.DetectorOutput`, boxes and their labels."""
