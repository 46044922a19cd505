"""Sensor drivers, reached by entry point."""
