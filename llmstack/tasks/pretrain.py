"""Pretraining: packed rows and next-token loss into the loop."""

import jax

from llmstack.data import pipeline
from llmstack.errors import BadInput
from llmstack.losses import lm
from llmstack.model import forward, init, parameters, unembed
from llmstack.tasks import start, train
from llmstack.tasks.sample import complete


def lm_loss(cfg, *, z_loss, chunk):
  """Returns loss_fn(params, frozen, batch, rng) of next-token cross-entropy."""

  def loss_fn(params, frozen, batch, rng):
    hidden, _ = forward(cfg, params, batch['tokens'], batch['positions'], batch['segments'], rng=rng)
    head = lambda h: unembed(cfg, params, h)  # noqa: E731
    return lm.chunked_cross_entropy(hidden, head, batch['targets'], batch['mask'], z_loss=z_loss, chunk=chunk)

  return loss_fn


def check_samples(config, cfg, tokenizer):
  """Returns nothing; raises BadInput for an eval prompt that would fail in the middle of training."""
  for prompt in config.eval.prompts:
    if not 0 < len(tokenizer.prompt(prompt)) <= cfg.length - config.eval.new_tokens:
      raise BadInput(
        f'eval.prompts has {prompt!r} of {len(tokenizer.prompt(prompt))} tokens and eval.new_tokens = '
        f'{config.eval.new_tokens}: together they must fit into model.length = {cfg.length}, and not be empty'
      )


def build(config, origin, mesh, watch):
  """Returns the Job of next-token prediction on packed text."""
  srcs = start.data_sources(config)
  with watch.pod.first('tokenizer'):
    tokenizer = origin.tokenizer(config, srcs)
  cfg = start.model_config(config, tokenizer)
  origin.check_model(cfg)
  fresh = lambda: init(cfg, jax.random.key(config.seed))  # noqa: E731
  start.check_layout(config, cfg, fresh, mesh)
  check_samples(config, cfg, tokenizer)
  with watch.pod.first('rows'):
    parts, held_out = (start.open_rows(config, srcs, tokenizer, split) for split in ('train', 'eval'))

  def answers(params):
    texts = complete(
      cfg, params, tokenizer, config.eval.prompts, mesh=mesh, new_tokens=config.eval.new_tokens,
      seeds=range(len(config.eval.prompts)), temperature=0.0,
    )  # fmt: skip
    return [(prompt, text.text) for prompt, text in zip(config.eval.prompts, texts)]

  return train.Job(
    cfg, tokenizer, pipeline.Mixture(parts, start.weights(config), seed=config.seed, batch=config.data.batch), held_out,
    lm_loss(cfg, z_loss=config.train.z_loss, chunk=config.train.loss_chunk), fresh,
    f'{parameters(cfg)[0] / 1e6:.2f}M parameters', answers=answers,
  )  # fmt: skip


def run(config, workdir):
  """Trains a model on text."""
  train.run(config, workdir, start.data_sources, build)
