"""Many methods, many seeds: `edge-coordinator compare`, its tables and its plots."""
