"""Records, configuration, clocks and the seams that both programs share."""
