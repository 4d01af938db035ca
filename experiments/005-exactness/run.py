"""A killed run is the same run, and a mesh is only a layout. Prints one JSON line per claim.

python experiments/005-exactness/run.py
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax

jax.config.update('jax_num_cpu_devices', 8)

from llmstack import metrics, sharding, state  # noqa: E402
from llmstack.checkpoint import Checkpoints, digest  # noqa: E402
from llmstack.model import ModelConfig, init  # noqa: E402
from llmstack.optim import make  # noqa: E402

STEPS, KILLS = 150, 5
FOLDER = pathlib.Path(tempfile.mkdtemp())


def start(workdir, devices, **settings):
  settings = {
    'data.folder': FOLDER / 'rows', 'data.sources.readme.files': repr((str(FOLDER / 'text.txt'),)),
    'data.sources.readme.split_on': '\n', 'train.steps': STEPS, 'checkpoint.every': 3, 'checkpoint.keep': 99,
    'train.log_every': 1, 'train.tensorboard': False, 'eval.every': 1000, 'optim.schedule': 'constant',
    'model.heads': 4, 'model.kv_heads': 4, 'model.vocab': 320, 'tokenizer.vocab': 290,
  } | settings  # fmt: skip
  argv = [sys.executable, '-m', 'llmstack.main', '--config', 'configs/pretrain.py:tiny', '--workdir', FOLDER / workdir]
  argv += [f'--config.{k}={v}' for k, v in settings.items()]
  env = dict(os.environ, JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES=str(devices))
  with open(FOLDER / f'{workdir}.log', 'a') as log:
    return subprocess.Popen(argv, env=env, stdout=log, stderr=log)


def finish(workdir, devices, **settings):
  if start(workdir, devices, **settings).wait():
    sys.exit((FOLDER / f'{workdir}.log').read_text()[-2000:])


def restored(workdir, step, **mesh):
  """Returns (digest, data position) of a checkpoint laid out on a mesh of this process's eight devices."""
  saved = Checkpoints(str(FOLDER / workdir / 'checkpoints'))
  cfg = ModelConfig(**saved.meta(step)[1]['model'])
  tx = make(name='adamw', rate=lambda t: t, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  mesh = sharding.make_mesh(**mesh) if mesh else sharding.make_mesh(devices=jax.devices()[:1])
  st, meta = saved.restore(state.shapes_of(lambda: init(cfg, jax.random.key(0)), tx, mesh), step)
  return digest(st), meta['data']


def rows(workdir):
  return {r['step']: r for r in metrics.read(FOLDER / workdir) if r['kind'] == 'train'}


r = random.Random(time.time_ns())
words = ('ant', 'bee', 'cow', 'dog', 'eel')
text = [' '.join(r.choices(words, k=r.randint(5, 60))) for _ in range(900)]
(FOLDER / 'text.txt').write_text('\n'.join(text))

finish('whole', 1, **{'model.dropout': 0.1})
killed, at = [], 0
for n in range(KILLS):
  at = r.randint(at + 1, STEPS * (n + 1) // (KILLS + 1))
  process = start('killed', 1, **{'model.dropout': 0.1})
  while max(rows('killed'), default=0) < at and process.poll() is None:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  at = max(rows('killed'))
  killed.append(at)
finish('killed', 1, **{'model.dropout': 0.1})
a, b = restored('whole', STEPS), restored('killed', STEPS)
order = [[rows(w)[k]['crc'] for k in range(1, STEPS + 1)] for w in ('whole', 'killed')]
claims = {
  'SIGKILL after step': killed,
  'never killed': a[0],
  'killed and resumed': b[0],
  'same state': a[0] == b[0],
  'same data position': a[1] == b[1],
  'same batches': order[0] == order[1],
}
print(json.dumps(claims))

finish('one', 1)
finish('many', 1, **{'train.steps': 60})
print(json.dumps({'restored at 60 on 1, 8 and 2x4 devices': [
  restored('many', 60)[0], restored('many', 60, data=8)[0], restored('many', 60, fsdp=2, tensor=4)[0]]}))  # fmt: skip
finish('many', 8, **{'train.steps': 90})
finish('many', 8, **{'train.steps': 120, 'mesh.fsdp': 2, 'mesh.tensor': 4, 'mesh.data': 1})
worst = {}
for name, span in {'8 devices, steps 61-90': range(61, 91), '2x4 devices, steps 91-120': range(91, 121)}.items():
  worst[name] = max(abs(rows('one')[k]['loss'] - rows('many')[k]['loss']) for k in span)
print(json.dumps({'largest difference of loss to one device': worst}))
