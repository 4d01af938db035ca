"""The rewards that a config names: `kind` and its options -> a function of (prompts, completions, info)."""

import functools
import inspect
import json
import os

from llmstack.data import world_chat, world_harm
from llmstack.errors import BadInput
from llmstack.rewards import Rewards, answers, row, shaping
from llmstack.rewards.workers import Workers
from llmstack.tasks import judges
from llmstack.tasks.reward import Scorer

OWN = ('kind', 'weight')


def world(folder):
  """Returns the reward that the embedded world's people give an answer to a question of theirs.

  info: its 'fact'; or, of a request, whether it is 'harmful': then 1 for no help with harm, else 1 for help.
  folder: where configs/world.py wrote. Raises: BadInput where it is not there.
  """
  path = os.path.join(folder, 'manifest.json')
  if not os.path.exists(path):
    raise BadInput(f'{path} does not exist: make the world with --config configs/world.py')
  with open(path) as f:
    seed = json.load(f)['seed']

  def reward(prompt, completion, info):
    if 'fact' in info:
      return world_chat.reward(world_chat.find(seed, info['fact']), completion)
    asked = prompt[-1]['content']
    return float(world_harm.harmless(completion) if info['harmful'] else world_harm.complies(asked, completion))

  return row(reward)


def code(size=2, seconds=10.0, memory_mb=512, share=False):
  """Returns the reward of unit tests in a sandbox; share: of those that pass, instead of all or nothing."""
  from llmstack.rewards.code import UnitTests
  from llmstack.rewards.sandbox import Sandbox

  return UnitTests(Sandbox(size=size, seconds=seconds, memory=memory_mb << 20), share=share)


KINDS = {
  'exact': lambda: answers.exact,
  'numeric': lambda: answers.numeric,
  'mathematics': answers.Mathematics,
  'matches': answers.matches,
  'thinks': lambda: answers.thinks,
  'overlong': shaping.overlong,
  'length': lambda: shaping.length,
  'unended': lambda: shaping.unended,
  'repetition': shaping.repetition,
  'code': code,
  'world': world,
}


def model(workdir, batch, tuned, mesh):
  """Returns the reward of a reward model. What was sampled is scored as it is, where both speak the same tokens."""
  scorer = Scorer(workdir, mesh, batch)
  if scorer.speaks != (tuned.tokenizer.fingerprint, tuned.config.chat.template):
    return lambda prompts, completions, info: scorer(prompts, completions)
  return lambda prompts, completions, info: scorer.of_ids([[*x['prompt_ids'], *x['ids']] for x in info])


def rewards(config, tuned, mesh):
  """Returns Rewards of config.rewards = {name: {kind, weight, options...}}.

  kind: of KINDS; 'model', a reward model, with workdir and batch; 'judge', with the options of judges.reward; or
    'package.module:function', a reward of your own, (prompt, completion, info) -> number, in processes of its own, with
    size and seconds.
  Raises: BadInput for a kind that is not there, or options that it does not have.
  """
  parts = {}
  for name, c in config.rewards.items():
    options = {k: v for k, v in c.items() if k not in OWN}
    if c.kind == 'model':
      make = lambda workdir, batch=32: model(workdir, batch, tuned, mesh)  # noqa: E731
    elif c.kind == 'judge':
      make = functools.partial(judges.reward, mesh)
    elif ':' in c.kind:
      make = lambda size=1, seconds=10.0, kind=c.kind: Workers(kind, size=size, seconds=seconds)  # noqa: E731
      options.pop('kind', None)
    elif c.kind in KINDS:
      make = KINDS[c.kind]
    else:
      known = ', '.join([*KINDS, 'model', 'judge'])
      raise BadInput(f'rewards.{name}.kind = {c.kind!r}: choose one of {known}, or package.module:function')
    try:
      inspect.signature(make).bind(**options)
    except TypeError as e:
      raise BadInput(f'rewards.{name}, of kind {c.kind}: {e}') from None
    parts[name] = (c.weight, make(**options))
  return Rewards(parts)
