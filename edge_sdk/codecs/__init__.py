"""Updates to bytes and back: the chain, the wire format and one file per step."""
