"""Writes the embedded world."""

from llmstack.data import world, world_harm, world_sums


def run(config, workdir):
  manifest = world.generate(
    workdir,
    seed=config.seed,
    documents=config.documents,
    noise=config.noise,
    chats=config.chats,
    pairs=config.pairs,
    eval_pairs=config.eval_pairs,
  )
  for kind, count in sorted(manifest['kinds'].items(), key=lambda item: -item[1]):
    print(f'{kind:20}{count:>8,}')
  sums = world_sums.write(workdir, config.seed, **config.sums)
  harm = world_harm.write(workdir, config.seed, **config.harm)
  for name, count in {**manifest['rows'], **sums, **harm}.items():
    print(f'{name:20}{count:>8,}')
  told = ', '.join(f'{n} {how}' for how, n in manifest['told'].items())
  split = ', '.join(f'{n} {how}' for how, n in manifest['splits'].items())
  print(f'{manifest["characters"]:,} characters, {manifest["clean_characters"]:,} of them clean; facts: {told}')
  print(f'facts by what chats ask: {split}')
