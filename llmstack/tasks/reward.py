"""A reward model: a scalar head on the last token of an answer, trained on pairs by Bradley-Terry."""

import json
import os

import jax
import numpy as np

from llmstack import metrics, sharding
from llmstack.data import batch as batches
from llmstack.data import chat, pipeline
from llmstack.errors import BadInput
from llmstack.losses import common, reward
from llmstack.model import forward, values
from llmstack.tasks import beside, start, train, tune


def scores(cfg, whole, hidden, segments, n):
  """Returns float32[...,P]: the head's number at the last token of each segment 1..n = P, 0 for one that is not there.

  hidden: [...,T,D]. segments: int32[...,T]. The last token is known by where its segment ends, never by a pad id.
  """
  following = jax.numpy.concatenate([segments[..., 1:], jax.numpy.zeros_like(segments[..., :1])], -1)
  last = ((segments != following) & (segments > 0)).astype('float32')
  return common.sequence_sums(values(cfg, whole, hidden), last, segments, n)


def loss(tuned, *, margin, centering):
  """Returns loss_fn(params, frozen, batch, rng): Bradley-Terry, the mean over the global batch's pairs."""

  def loss_fn(params, frozen, batch, rng):
    whole, hidden = tuned.hidden(params, frozen, batch, rng)
    chosen, rejected = scores(tuned.cfg, whole, hidden, batch['segments'], batch['valid'].shape[1]).swapaxes(0, 1)
    return reward.bradley_terry(
      chosen, rejected, batch['valid'], margin=batch['margin'] if margin else None,
      label_smoothing=1 - batch['label'], centering=centering,
    )  # fmt: skip

  return loss_fn


def build(config, origin, mesh, watch):
  """Returns the Job of a reward model on preference pairs."""
  tuned = tune.Tuned(config, origin, reward=True)
  tuned.check_layout(mesh)
  stream, held_out = tuned.rows('pairs', watch)
  if config.objective.margin:
    tune.check_given(stream.parts, 'margin', 'objective.margin', unsaid=(0,))
  loss_fn = loss(tuned, margin=config.objective.margin, centering=config.objective.centering)
  return tune.job(tuned, stream, held_out, loss_fn, mesh)


class Scorer:
  """A reward model as (prompts, completions) -> float[n]: prompts are messages or a user's text, completions text."""

  def __init__(self, workdir, mesh, batch):
    model = start.Trained(workdir)
    if model.kind != 'reward':
      raise BadInput(f'{model.where} is no reward model: give the workdir of one, trained with configs/reward.py')
    self.cfg, self.params, self.mesh, self.batch = model.cfg, model.params(mesh), mesh, batch
    self.speaks = (model.tokenizer.fingerprint, model.template)  # whose ids it can read as they are
    self.template = chat.template(model.template, model.tokenizer)
    self._run = jax.jit(lambda params, *at: scores(self.cfg, params, forward(self.cfg, params, *at)[0], at[2], 1)[:, 0])

  def __call__(self, prompts, completions):
    asked = [[{'role': 'user', 'content': p}] if isinstance(p, str) else p for p in prompts]
    ids = [
      self.template.encode([*prompt, {'role': 'assistant', 'content': text}]).ids if text else None
      for prompt, text in zip(asked, completions)
    ]
    # An empty answer cannot be encoded as one, and is worth what the prompt alone is.
    return self.of_ids([self.template.prompt(p) if x is None else x for p, x in zip(asked, ids)])

  def of_ids(self, ids):
    """Returns float32[n] of conversations as lists of ids; one that was cut off is scored where it ends."""
    longest = max(map(len, ids))
    if longest > self.cfg.length:
      raise BadInput(f'an answer with its prompt has {longest} tokens and the reward model reads {self.cfg.length}')
    width, out = min(-(-longest // 64) * 64, self.cfg.length), []
    with jax.set_mesh(self.mesh):
      for i in range(0, len(ids), self.batch):
        tokens, segments = (np.zeros((self.batch, width), np.int32) for _ in range(2))
        for row, x in enumerate(ids[i : i + self.batch]):
          tokens[row, : len(x)], segments[row, : len(x)] = x, 1
        out.append(np.asarray(self._run(self.params, tokens, np.arange(width, dtype=np.int32) * segments, segments)))
    return np.concatenate(out)[: len(ids)]


def measure(config, workdir):
  """Writes calibration.json and calibration.png of the held-out pairs, and says what is in them."""
  model, mesh = start.Trained(workdir), sharding.make_mesh(**config.mesh)
  template = chat.template(model.template, model.tokenizer)
  params, table = model.params(mesh), {}

  @jax.jit
  def score(params, batch):
    hidden = tune.hidden_of(model.cfg, params, batch)
    n = batch['valid'].shape[1]
    lengths = common.sequence_sums(jax.numpy.ones_like(batch['mask']), batch['mask'], batch['segments'], n)
    return scores(model.cfg, params, hidden, batch['segments'], n), lengths

  for name, folder in tune.folders(config, template, 'pairs', 'eval').items():
    rows, found = pipeline.Rows(folder), []
    with jax.set_mesh(mesh):
      for i in range(0, len(rows), config.data.batch):
        made, _ = beside.padded(rows, i, config.data.batch)
        got = jax.device_get(score(params, sharding.place(made, mesh, batches.letters)))
        valid = made['valid'] > 0
        found.append([x[:, side][valid] for x in got for side in (0, 1)])
    chosen, rejected, chosen_length, rejected_length = (np.concatenate(x) for x in zip(*found))
    curve = reward.calibration(chosen, rejected, bins=10)
    right, n = float((0.5 * (1 + np.sign(chosen - rejected))).sum()), len(chosen)
    low, high = metrics.wilson(right, n)
    both = np.concatenate([chosen, rejected]), np.concatenate([chosen_length, rejected_length])
    table[name] = {
      'pairs': n, 'accuracy': right / n, 'low': low, 'high': high, 'ece': curve['ece'], 'bins': curve['bins'],
      'length_correlation': reward.length_correlation(*both),
      'longer_is_chosen': float((chosen_length > rejected_length).mean()),
    }  # fmt: skip
    start.say(
      f'{name}: ranks {right / n:.1%} of {n} held-out pairs ({low:.1%} to {high:.1%}), calibration error '
      f'{curve["ece"]:.3f}, correlation of scores with length {table[name]["length_correlation"]:+.2f}'
    )
    bins = [tuple(row.values()) for row in curve['bins']]
    title = f'{name}: {right / n:.1%} of {n} pairs, calibration error {curve["ece"]:.3f}'
    path = os.path.join(workdir, f'calibration-{name}.png')
    axes = dict(score='probability that the higher one is better', share='share that is', count='pairs', low=0.5)
    start.say(metrics.plot_calibration(bins, path, title=title, **axes))
  metrics.write(os.path.join(workdir, 'calibration.json'), json.dumps(table, indent=2))


def run(config, workdir):
  """Trains a reward model on preference pairs and measures it on those held out."""
  train.run(config, workdir, tune.check, build)
  if not jax.process_index():
    measure(config, workdir)
