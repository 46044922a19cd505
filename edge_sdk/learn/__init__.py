"""Arithmetic on models, the one training loop and the numerics that methods share."""
