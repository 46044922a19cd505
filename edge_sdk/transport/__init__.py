"""Topics and the ways bytes travel: memory, MQTT, the embedded broker."""
