"""Prints nanodo's train step in fp32 as one JSON line.

The state comes from its `train._init_train_state`, the step from its `train.Trainer` (jit, donation, sharding over a
mesh of one device) and its `configs/default.py`, of which this keeps: no remat, fsdp_enabled, F = 4 d with GELU, no
biases, learned positions, tied embedding, einsum attention with a full T x T mask, AdamW (0.9, 0.98, decay 0.1)
inside optax.MultiSteps of 1, warm-up and cosine, no clipping, log_internal_metrics (rms, mean and std of every
parameter, gradient and update, each step). It changes: model shape, batch size, dtype float32 (default bfloat16).
`--no-internal-metrics` switches that one default off; `--clip` clips at 1.0 as nanoGPT does.

The loop is its own: dispatch a step, then fetch the metrics of the one before. Tokens are random in 1..V-1 (0 is its
padding), drawn before the clock starts. clu and tensorflow_datasets, which only its data and logging need, are replaced
by empty modules.
"""

import argparse
import importlib.metadata
import itertools
import os
import sys
import time
import types

import common

threads = common.limit_threads()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
PEERS = os.environ['PEERS']  # checkouts of nanoGPT and nanodo; the GGUF file
sys.path.insert(0, os.path.join(PEERS, 'nanodo'))
clu = types.ModuleType('clu')
clu.metric_writers = clu.periodic_actions = None
sys.modules |= {'clu': clu, 'tensorflow_datasets': types.ModuleType('tensorflow_datasets')}

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import mesh_utils  # noqa: E402
from nanodo import metrics as metrics_lib  # noqa: E402
from nanodo import model_factory, train  # noqa: E402
from nanodo.configs import default  # noqa: E402


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', choices=common.TRAIN_SIZES, required=True)
  parser.add_argument('--steps', type=int, default=10, help='timed steps')
  parser.add_argument('--warm-up', type=int, default=common.WARM_UP)
  parser.add_argument('--no-internal-metrics', action='store_true')
  parser.add_argument('--clip', action='store_true')
  args = parser.parse_args()
  layers, d, heads, length, batch, vocabulary = common.TRAIN_SIZES[args.size]
  config = default.get_config()
  config.batch_size = batch
  config.model.update(dict(D=d, H=heads, L=length, N=layers, F=4 * d, dtype='float32'))
  config.log_internal_metrics = not args.no_internal_metrics
  if args.clip:
    config.opt.clip_by_global_norm = 1.0

  mesh = jax.sharding.Mesh(mesh_utils.create_device_mesh((jax.device_count(),)), ('data',))
  model, get_loss_fn = model_factory.get_model_and_loss(config, vocabulary)
  shardings, state = train._init_train_state(config, model, jax.random.PRNGKey(config.seed), mesh)
  trainer = train.Trainer(config, state, mesh, shardings, get_loss_fn)
  total = args.steps + args.warm_up
  data = np.random.default_rng(common.SEED).integers(1, vocabulary, (total, batch, length), dtype=np.int32)

  # One step ahead of the metrics, as its loop: a step's time is that from the previous step's metrics to its own.
  done, losses, pending = [time.perf_counter()], [], None

  def fetch(step, metrics):
    losses.append(float(trainer.get_metrics(step, metrics)['train_loss']))
    done.append(time.perf_counter())

  for step, tokens in enumerate(data):
    metrics = trainer.do_step(step, tokens)
    if pending is not None:
      fetch(step - 1, pending)
    else:
      jax.block_until_ready((trainer.state, metrics))
      first_step = common.process_age()
    pending = metrics
  fetch(step, pending)
  seconds = [after - before for before, after in itertools.pairwise(done)]
  common.emit(
    'nanodo',
    f'10aefde, jax {jax.__version__}, flax {importlib.metadata.version("flax")}',
    args.size,
    batch * length,
    seconds,
    first_step,
    threads,
    args.warm_up,
    parameters=metrics_lib._size(trainer.state.params),
    internal_metrics=config.log_internal_metrics,
    clip=bool(args.clip),
    loss_first=round(losses[0], 4),
    loss_last=round(losses[-1], 4),
  )


if __name__ == '__main__':
  main()
