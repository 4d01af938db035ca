"""Prompts -> completions of a checkpoint -> those that a verifier or a classifier accepts, as a source for preparation.

    WORKDIR/part-00000.jsonl.zst   {"id", "text", "prompt", "model", "step", "seed", "score", "synthetic": true}
    WORKDIR/rejected-00000.jsonl.zst the same of what was not accepted, to be looked at

A part is written whole, so that a run that was broken off goes on behind the last one.
"""

import json
import os

import numpy as np
import zstandard

from llmstack import errors, sharding
from llmstack.data import sources
from llmstack.errors import BadInput
from llmstack.prepare import verify
from llmstack.tasks import start
from llmstack.tasks.sample import complete, load


def accepted(texts, config):
  """Returns float[N] scores and bool[N]."""
  from llmstack.prepare import classify

  if config.judge:
    scores = classify.score(classify.load(config.judge), texts)
  else:
    scores = np.array([verify.verifier(config.verifier)(text) for text in texts])
  return scores, scores >= config.least


def run(config, workdir):
  """Writes the parts and prints how many completions were accepted."""
  errors.at_least(config, 1, 'samples', 'new_tokens', 'batch')
  if bool(config.judge) == bool(config.verifier):
    raise BadInput(f'verifier = {config.verifier!r} and judge = {config.judge!r}: set one of them')
  if config.verifier:
    verify.verifier(config.verifier)
  prompts = list(config.prompts)
  if config.files:
    found = sources.documents(sources.Source(tuple(config.files), split_on='\n', field=config.field))
    prompts += [document.text for document in found]
  if not all(prompts) or not prompts:
    raise BadInput('there is no prompt, or an empty one: give prompts, or files with one a line or JSON lines')
  jobs = [(prompt, config.seed + i) for prompt in prompts for i in range(config.samples)]
  settings = json.loads(config.to_json())
  os.makedirs(workdir, exist_ok=True)
  kept = os.path.join(workdir, 'settings.json')
  if os.path.exists(kept):
    with open(kept) as f:
      if (made := json.load(f)) != settings:
        differ = sorted(k for k in settings if made.get(k) != settings[k])
        raise BadInput(f'{workdir} was made with another {", ".join(differ)}: give another --workdir')
  mesh = sharding.make_mesh(**config.mesh)
  cfg, params, tokenizer, step = load(config.model, config.step, mesh, config.batch)
  with open(kept, 'w') as f:
    json.dump(settings, f, indent=2)
  good = total = 0
  for part, at in enumerate(range(0, len(jobs), config.batch)):
    path = os.path.join(workdir, f'part-{part:05d}.jsonl.zst')
    group = jobs[at : at + config.batch]
    total += len(group)
    if os.path.exists(path):
      good += sum(1 for _ in sources.objects(sources.Source((path,))))
      continue
    filled = group + group[:1] * (config.batch - len(group))  # one width, so that the decode loop compiles once
    texts = complete(
      cfg, params, tokenizer, [p for p, _ in filled], mesh=mesh, seeds=[s for _, s in filled],
      new_tokens=config.new_tokens, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
      stop=tuple(config.stop),
    )[: len(group)]  # fmt: skip
    whole = [prompt + t.text for (prompt, _), t in zip(group, texts)]
    scores, fit = accepted(whole, config)
    fit &= np.array([t.done for t in texts]) | (not config.finished)
    for name, which in (('rejected', ~fit), ('part', fit)):
      with zstandard.open(f'{path}.tmp', 'wb') as f:
        for i in np.flatnonzero(which):
          row = dict(
            id=f'{part}-{i}', text=whole[i], prompt=group[i][0], model=config.model, step=step, seed=group[i][1]
          )
          f.write((json.dumps(row | {'score': float(scores[i]), 'synthetic': True}) + '\n').encode())
      os.replace(f'{path}.tmp', os.path.join(workdir, f'{name}-{part:05d}.jsonl.zst'))
    good += int(fit.sum())
    start.say(f'{total} of {len(jobs)} completions, {good} accepted')
  print(f'{good} of {total} completions accepted ({good / total:.1%}): {workdir}/part-*.jsonl.zst')
