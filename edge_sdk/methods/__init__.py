"""One file per paper: client rule and server rule together."""
