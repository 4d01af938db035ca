"""Writes the embedded world."""

from llmstack.data import world


def run(config, workdir):
  manifest = world.generate(workdir, seed=config.seed, documents=config.documents, noise=config.noise)
  for key, value in manifest.items():
    print(f'{key}: {value}')
