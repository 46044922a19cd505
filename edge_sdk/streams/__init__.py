"""From chunks to windows: pump, ring, align, window, reservoir."""
