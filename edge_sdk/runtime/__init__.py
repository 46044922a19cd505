"""A device's life: sense, predict, train, send, follow."""
