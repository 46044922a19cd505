"""The program that mixes what the devices send."""
