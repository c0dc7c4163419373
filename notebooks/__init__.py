"""The notebooks that answer the project's questions: data, found by name (``workbench report 01_placement``)."""
