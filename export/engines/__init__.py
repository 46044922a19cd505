"""Torch and ONNX Runtime behind one Engine interface."""
