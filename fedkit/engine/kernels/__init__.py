"""All C that trains, and its bindings."""
