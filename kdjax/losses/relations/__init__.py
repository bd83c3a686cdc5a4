"""Losses between how two networks relate the examples of a batch to each other."""
