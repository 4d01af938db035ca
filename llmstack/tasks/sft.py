"""Supervised fine-tuning: next-token loss on what the assistant says."""

from llmstack.losses import lm
from llmstack.model import unembed
from llmstack.tasks import train, tune


def loss(tuned, *, z_loss, chunk):
  """Returns loss_fn(params, frozen, batch, rng): cross-entropy, the mean over the global batch's targets."""

  def loss_fn(params, frozen, batch, rng):
    whole, hidden = tuned.hidden(params, frozen, batch, rng)
    head = lambda h: unembed(tuned.cfg, whole, h)  # noqa: E731
    return lm.chunked_cross_entropy(hidden, head, batch['targets'], batch['mask'], z_loss=z_loss, chunk=chunk)

  return loss_fn


def build(config, origin, mesh, watch):
  """Returns the Job of fine-tuning on conversations."""
  tuned = tune.Tuned(config, origin)
  tuned.check_layout(mesh)
  stream, held_out = tuned.rows('chat', watch)
  loss_fn = loss(tuned, z_loss=config.train.z_loss, chunk=config.train.loss_chunk)
  return tune.job(tuned, stream, held_out, loss_fn, mesh)


def run(config, workdir):
  """Tunes a model on conversations."""
  train.run(config, workdir, tune.check, build)
