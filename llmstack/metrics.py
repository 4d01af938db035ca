"""What a run says about itself: metrics.jsonl (the truth), TensorBoard, a progress line and a PNG.

metrics.jsonl has one object per logged step: {'step', 'kind': 'train' | 'eval' | 'sample' | 'pause', 'time', ...};
of a run that learns from rewards also 'failed' (name, why, rows of a reward) and 'alarm' (why).
Loss in nats per token, `time` in seconds since 1970, other times in seconds, *_share between 0 and 1. A pause is what
evaluating and starting to save took at one step.
"""

import importlib.util
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from llmstack.errors import BadInput

# Dense bf16 peak of one chip, FLOP/s. Source: vendors' data sheets.
PEAK = {
  'TPU v4': 275e12, 'TPU v5 lite': 197e12, 'TPU v5e': 197e12, 'TPU v5p': 459e12, 'TPU v5': 459e12,
  'TPU v6 lite': 918e12, 'TPU v6e': 918e12, 'NVIDIA A100': 312e12, 'NVIDIA H100': 989e12, 'NVIDIA H200': 989e12,
}  # fmt: skip


def peak_flops():
  """Returns FLOP/s of all devices together: the data sheet's, or on a CPU what a large float32 matmul reaches.

  Emulated CPU devices share the same cores, so a CPU counts once for each process. None for an accelerator that is
  not in PEAK.
  """
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    known = [v for k, v in PEAK.items() if device.device_kind.startswith(k)]
    return known[0] * jax.device_count() if known else None
  n = 1024
  x = jax.device_put(jnp.ones((n, n), jnp.float32), device)
  f = jax.jit(lambda x: x @ x)
  f(x).block_until_ready()
  times = []
  for _ in range(5):
    t = time.perf_counter()
    f(x).block_until_ready()
    times.append(time.perf_counter() - t)
  return 2 * n**3 / min(times) * jax.process_count()


def clock(seconds):
  """Returns seconds as h:mm:ss."""
  return f'{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}'


class Metrics:
  """The log of one workdir. Only process 0 writes."""

  def __init__(self, workdir, *, resume_step, tensorboard):
    """resume_step: rows after it are dropped, so that a resumed run has one row per step."""
    self.path = os.path.join(workdir, 'metrics.jsonl')
    self.active = jax.process_index() == 0
    self.tty = sys.stderr.isatty()
    self.tensorboard = os.path.join(workdir, 'tensorboard') if tensorboard and self.active else None
    self._writer = None
    if self.active:
      rows = [r for r in read(workdir) if r['step'] <= resume_step]
      write(self.path, ''.join(json.dumps(r) + '\n' for r in rows))
      self._file = open(self.path, 'a', buffering=1)

  def log(self, step, kind, **values):
    if not self.active:
      return
    self._file.write(json.dumps({'step': step, 'kind': kind, 'time': round(time.time(), 3), **values}) + '\n')
    if self.tensorboard:
      if self._writer is None:
        from tensorboardX import SummaryWriter  # 3 s, so not before the first step

        self._writer = SummaryWriter(self.tensorboard, purge_step=step)
      for name, value in values.items():
        if isinstance(value, (int, float)):
          self._writer.add_scalar(f'{kind}/{name}', value, step)
        elif isinstance(value, str):
          self._writer.add_text(f'{kind}/{name}', value, step)

  def progress(self, line, *, end=False):
    """Shows a line: over the last one on a terminal, below it in a log."""
    if self.active:
      print(
        f'\r\033[K{line}' if self.tty else line,
        end='\n' if end or not self.tty else '',
        file=sys.stderr,
        flush=True,
      )

  def close(self):
    if self.active:
      self._file.close()
    if self._writer:
      self._writer.close()


def read(workdir):
  """Returns the rows of metrics.jsonl, without a last line that a kill cut short."""
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.exists(path):
    return []
  with open(path) as f:
    return [json.loads(line) for line in f if line.endswith('}\n')]


def write(path, text):
  """Writes a file whole or not at all, by process 0."""
  if jax.process_index() == 0:
    with open(path + '.new', 'w') as f:
      f.write(text)
    os.replace(path + '.new', path)


DRAWS = 10_000  # of the bootstrap


def wilson(hits, n):
  """Returns the 95 % interval of a proportion. Source: Wilson 1927."""
  z, p = 1.96, hits / n
  middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def win_rate(scores_a, scores_b, seed):
  """Returns (rate, low, high): how often a beats b, ties half, with a bootstrap 95 % interval over prompts.

  scores_a, scores_b: float[n] of the same prompts. Percentiles of DRAWS resamples: a prompt is won, tied or lost, so
  resampling prompts is drawing those three counts. Source: Efron 1979.
  Raises: BadInput for scores that are not finite, or not as many.
  """
  a, b = (np.asarray(x, np.float64) for x in (scores_a, scores_b))
  if a.shape != b.shape or a.ndim != 1 or not len(a):
    raise BadInput(f'scores have the shapes {a.shape} and {b.shape}: give one of each for every prompt')
  if bad := int((~np.isfinite(a) | ~np.isfinite(b)).sum()):
    raise BadInput(f'{bad} of {len(a)} prompts have a score that is not finite: correct the scorer')
  counts = np.array([(a > b).sum(), (a == b).sum(), (a < b).sum()])
  drawn = np.random.default_rng(seed).multinomial(len(a), counts / len(a), DRAWS) @ np.array([1, 0.5, 0]) / len(a)
  return float(counts[0] + counts[1] / 2) / len(a), *map(float, np.percentile(drawn, (2.5, 97.5)))


def plot(workdir):
  """Returns a line that names curves.png: training and held-out loss, norms, throughput."""
  if importlib.util.find_spec('matplotlib') is None:
    return 'no curves: matplotlib is in the extra `plot`'
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  rows = read(workdir)
  train, evals = ([r for r in rows if r['kind'] == k] for k in ('train', 'eval'))
  key = next((k for k in ('reward', 'nll') if any(k in r for r in train)), 'loss')
  ranked = key == 'loss' and any('accuracy' in r for r in train)
  fig, axes = plt.subplots(1, 3 + ranked, figsize=(13, 3.8), layout='constrained')
  a, b, c = axes[:3]
  column = lambda rows, k: ([r['step'] for r in rows if k in r], [r[k] for r in rows if k in r])  # noqa: E731
  a.plot(*column(train, key), lw=0.7, color='#9ab', label='train')
  by_name = {}
  for r in evals:
    by_name.setdefault(r['name'], []).append(r)
  for name, group in by_name.items():
    a.plot(*column(group, key), 'o-', ms=3, label=f'held out: {name}')
  if key == 'reward':
    for r in rows:
      if r['kind'] == 'alarm':
        a.axvline(r['step'], color='#c33', lw=0.8)
  a.set(xlabel='step', ylabel={'nll': 'nats per token'}.get(key, key), title='Reward' if key == 'reward' else 'Loss')
  below = dict(loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize='small')  # many would hide the lines
  a.legend(frameon=False, **(below if len(by_name) > 3 else {}))
  for name in ('grad_norm', 'update_norm', 'param_norm'):
    b.plot(*column(train, name), lw=0.8, label=name.replace('_', ' '))
  b.set(xlabel='step', yscale='log', title='Norms')
  b.legend(frameon=False)
  if ranked:  # of preferences: how many are ranked right says more
    d = axes[3]
    d.plot(*column(train, 'accuracy'), lw=0.7, color='#9ab')
    for group in by_name.values():
      d.plot(*column(group, 'accuracy'), 'o-', ms=3)
    d.set(xlabel='step', ylim=(0, 1), title='Pairs ranked right')
  c.plot(*column(train, 'tokens_per_s'), lw=0.8, color='#364')
  c.set(xlabel='step', ylabel='tokens / s', title='Throughput', ylim=(0, None))
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  path = os.path.join(workdir, 'curves.png')
  fig.savefig(path, dpi=110)
  plt.close(fig)
  return f'curves: {path}'


def plot_calibration(bins, path, *, title, score='mean score', share='share labelled 1', count='documents', low=0.0):
  """Returns a line that names the figure: share of 1 against mean score of each bin, and how many it holds.

  bins: [(low, high, count, mean, share)]. low: least score there is.
  """
  if importlib.util.find_spec('matplotlib') is None:
    return 'no figure: matplotlib is in the extra `plot`'
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  begin, end, n, mean, found = zip(*bins)
  fig, (a, b) = plt.subplots(1, 2, figsize=(9, 3.8), layout='constrained')
  a.plot([low, 1], [low, 1], lw=0.7, color='#9ab')
  a.plot(mean, found, 'o-', ms=4)
  a.set(xlabel=score, ylabel=share, xlim=(low, 1), ylim=(0, 1), title=title)
  b.bar(begin, n, [h - l for l, h in zip(begin, end)], align='edge', color='#9ab')
  b.set(xlabel=score, ylabel=count, xlim=(low, 1))
  for axis in (a, b):
    axis.spines[['top', 'right']].set_visible(False)
  fig.savefig(path, dpi=110)
  plt.close(fig)
  return f'figure: {path}'
