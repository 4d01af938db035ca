"""What a model pretrained on the embedded world knows, measured against the world's truth."""

import json
import os
import re

import numpy as np

from llmstack import errors, metrics, sharding
from llmstack.data import world
from llmstack.errors import BadInput
from llmstack.model import parameters
from llmstack.tasks.sample import complete, load


def run(config, workdir):
  """Prints a table of what was measured and writes it to recall.json; draws curves.png."""
  manifest = os.path.join(config.world, 'manifest.json')
  if not os.path.exists(manifest):
    raise BadInput(f'{config.world} holds no world: make one with --config configs/world.py --workdir {config.world}')
  with open(manifest) as f:
    facts = world.facts(json.load(f)['seed'])
  errors.at_least(config, 1, 'batch', 'answer_tokens')
  errors.at_least(config, 3, 'quizzes')
  fewest = min(world.variants(a, 'cloze') for a in world.ATTRIBUTES)
  if not 0 <= config.wording < fewest or config.quizzes > len(facts):
    raise BadInput(f'wording = {config.wording} and quizzes = {config.quizzes}: use below {fewest}, up to {len(facts)}')
  rows = metrics.read(workdir)
  train = [r for r in rows if r['kind'] == 'train']
  if not train:
    raise BadInput(f'{workdir} was not trained here, it has no metrics.jsonl: give the workdir of a training run')
  mesh = sharding.make_mesh(**config.mesh)
  cfg, params, tokenizer, step = load(workdir, None, mesh, config.batch)

  def answers(prompts, new_tokens):
    out = []
    for i in range(0, len(prompts), config.batch):
      group = prompts[i : i + config.batch]
      # One width for every group, so that the decode loop compiles once.
      filled = group + group[:1] * (config.batch - len(group))
      texts = complete(
        cfg, params, tokenizer, filled, mesh=mesh, new_tokens=new_tokens, seeds=range(len(filled)), temperature=0.0
      )
      out += [t.text for t in texts[: len(group)]]
    return out

  table = {}
  clozes = [world.cloze(fact, config.wording) for fact in facts]
  said = answers([prompt for prompt, _ in clozes], config.answer_tokens)
  # A whole word: ' Helium' is not the answer ' He'.
  right = np.array([bool(re.match(re.escape(value) + r'\b', text)) for text, (_, value) in zip(said, clozes)])
  for told in ('qa', 'statement', 'unseen'):
    mask = np.array([fact.told == told for fact in facts])
    table[f'facts told as {told}'] = int(right[mask].sum()), int(mask.sum())
  # A base model goes on with a list of questions as it began: the next line is a question too.
  asked = [world.question(fact, 0) for fact in facts[:: len(facts) // config.quizzes][: config.quizzes]]
  pages = ['\n'.join(asked[i : i + 3]) + '\n' for i in range(0, len(asked) - 2, 3)]
  lines = [text.split('\n')[0] for text in answers(pages, 2 * config.answer_tokens)]
  table['question after questions'] = sum('?' in line for line in lines), len(lines)

  for r in [r for r in rows if r['kind'] == 'sample' and r['step'] == step]:
    print(f'  {r["prompt"]}\033[2m{r["text"]}\033[0m\n' if os.isatty(1) else f'  {r["prompt"]} |{r["text"]}\n')
  print(f'{"measured at step " + str(step):32}{"value":>12}   95 % interval')
  print(f'{"parameters":32}{parameters(cfg)[0]:>12,}')
  print(f'{"tokens trained on":32}{step * train[-1]["tokens_per_step"]:>12,}')
  print(f'{"median tokens / s":32}{np.median([r["tokens_per_s"] for r in train]):>12,.0f}')
  print(f'{"time to first step, s":32}{next(r["first_step_s"] for r in train if "first_step_s" in r):>12.1f}')
  print(f'{"waiting for input":32}{np.median([r["input_share"] for r in train]):>12.1%}')
  for r in [r for r in rows if r['kind'] == 'eval' and r['step'] == step]:
    print(f'{"held-out loss, nats per token":32}{r["nll"]:>12.4f}')
  for name, (hits, n) in table.items():
    low, high = metrics.wilson(hits, n)
    print(f'{name:32}{hits / n:>12.1%}   {low:.1%} to {high:.1%} of {n}')
  with open(os.path.join(workdir, 'recall.json'), 'w') as f:
    json.dump({'step': step, **{k: {'right': h, 'of': n} for k, (h, n) in table.items()}}, f, indent=2)
  print(f'\n{metrics.plot(workdir)}')
