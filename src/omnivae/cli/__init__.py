"""The ``omnivae`` command: thin commands over public functions."""
