"""Encoders, fusion and the model that a federation's spec asks for."""
