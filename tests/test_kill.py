"""Killed at random steps and resumed == never killed, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from llmstack import metrics, sharding, state
from llmstack.checkpoint import Checkpoints, digest
from llmstack.model import ModelConfig, init
from llmstack.optim import make

STEPS = 60


def start(folder, workdir):
  text = folder / 'text.txt'
  if not text.exists():
    r = random.Random(0)
    text.write_text(' '.join(r.choice(('ant', 'bee', 'cow', 'dog', 'eel')) for _ in range(20_000)))
  argv = [sys.executable, '-m', 'llmstack.main', '--config', 'configs/pretrain.py:tiny', '--workdir', folder / workdir]
  settings = {
    'data.folder': folder / 'rows', 'data.sources.readme.files': repr((str(text),)), 'train.steps': STEPS,
    'checkpoint.every': 3, 'train.log_every': 1, 'train.tensorboard': False, 'eval.every': 1000, 'tokenizer.vocab': 290,
    'model.dropout': 0.1, 'eval.rows': 8, 'eval.prompts': '()',
  }  # fmt: skip
  argv += [f'--config.{k}={v}' for k, v in settings.items()]
  env = dict(
    os.environ, JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES='1', JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled')
  )
  with open(folder / f'{workdir}.log', 'a') as log:
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=log)


def finish(process, folder, workdir):
  assert process.wait(timeout=240) == 0, (folder / f'{workdir}.log').read_text()[-3000:]


def logged(folder, workdir):
  return max((r['step'] for r in metrics.read(folder / workdir)), default=0)


def result(folder, workdir):
  """Returns (digest of the whole state, data position, [(step, crc, loss)]) at the end."""
  saved = Checkpoints(str(folder / workdir / 'checkpoints'))
  _, meta = saved.meta()
  cfg = ModelConfig(**meta['model'])
  tx = make(name='adamw', rate=lambda t: t, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  st, _ = saved.restore(state.shapes_of(lambda: init(cfg, jax.random.key(0)), tx, mesh))
  rows = [r for r in metrics.read(folder / workdir) if r['kind'] == 'train']
  return digest(st), meta['data'], [(r['step'], r['crc'], r['loss']) for r in rows]


@pytest.mark.parametrize('kills', [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_never_killed(tmp_path, kills):
  """A step is repeated or lost, the dropout key or Adam's count restarts, a half-written checkpoint is read."""
  finish(start(tmp_path, 'whole'), tmp_path, 'whole')
  want = result(tmp_path, 'whole')
  r, at, killed = random.Random(time.time_ns()), 0, []
  for n in range(kills):
    at = r.randint(at + 1, STEPS * (n + 1) // (kills + 1))
    process = start(tmp_path, 'killed')
    while logged(tmp_path, 'killed') < at and process.poll() is None:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
    at = logged(tmp_path, 'killed')
    killed.append(at)
  finish(start(tmp_path, 'killed'), tmp_path, 'killed')
  got = result(tmp_path, 'killed')
  print(json.dumps({'killed after step': killed, 'whole': want[0], 'killed and resumed': got[0]}))
  assert got[0] == want[0], killed
  assert got[1] == want[1] and got[2] == want[2], killed
  assert [k for k, *_ in got[2]] == list(range(1, STEPS + 1))
