"""Raw text -> documents fit to train on. `engine` is the only importer of daft; rules and keys are plain functions."""
