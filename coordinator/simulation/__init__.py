"""Many devices and one coordinator on the virtual clock."""
