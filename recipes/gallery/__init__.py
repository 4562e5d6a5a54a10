"""The cores of published papers in the notation, each beside a reference that is written without the library."""
