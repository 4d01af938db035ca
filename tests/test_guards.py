"""What a step and a start survive or refuse: poison, spikes, overflow, too little memory, other layouts or data."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import batch, close, model, weights
from test_run import TEXT, Run

from llmstack import memory, metrics, optim, sharding, state
from llmstack.checkpoint import Checkpoints, digest, tree_spec
from llmstack.data import tokenizer
from llmstack.errors import BadInput
from llmstack.model import ModelConfig, init
from llmstack.step import make_step
from llmstack.tasks.pretrain import lm_loss

CFG = model('llama_tiny')
LM = lm_loss(CFG, z_loss=0.0, chunk=None)
ADAM = optax.adam(1e-2)
KNOBS = dict(microbatches=1, remat='none', fsdp=1, batch=8)


@jax.custom_vjp
def tainted(loss, poison):
  return loss


# The loss is as it was, its gradient is multiplied by the poison.
tainted.defvjp(lambda loss, poison: (loss, poison), lambda poison, g: (g * poison, jnp.zeros_like(poison)))


def bad_row(params, frozen, b, rng):
  """The language model's loss; a row whose `loss` or `grad` is not 1 poisons it."""
  sums, over, measured = LM(params, frozen, {k: b[k] for k in b if k not in ('loss', 'grad')}, rng)
  return {k: tainted(v, jnp.prod(b['grad'])) * jnp.prod(b['loss']) for k, v in sums.items()}, over, measured


def test_one_bad_row_of_one_microbatch_on_a_mesh_changes_nothing():
  """The sum over microbatches or devices hides it, or some shard of the state takes the update."""
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  clean = batch(8, 16) | {'loss': np.ones(8, np.float32), 'grad': np.ones(8, np.float32)}
  fresh = state.create(weights(CFG), ADAM)
  with jax.set_mesh(mesh):
    layout = jax.tree.map(lambda x: x.sharding, state.shapes_of(lambda: fresh.params, ADAM, mesh))
    step = make_step(bad_row, ADAM, seed=0, microbatches=2, clip=1.0)
    step = jax.jit(step, out_shardings=(layout, None))
    st, first = step(jax.device_put(fresh, layout), None, sharding.place(clean, mesh))
    before = digest((st.params, st.opt_state))
    for n, (where, poison) in enumerate([('loss', np.nan), ('loss', np.inf), ('grad', np.nan), ('grad', np.inf)], 1):
      bad = clean | {where: np.array([1, 1, 1, 1, 1, poison, 1, 1], np.float32)}
      st, measured = step(st, None, sharding.place(bad, mesh))
      assert digest((st.params, st.opt_state)) == before
      assert (int(st.step), int(measured['skipped']), int(measured['streak'])) == (1 + n, n, n)
      assert np.isfinite(measured['loss']) == (where == 'grad') and not np.isfinite(measured['grad_norm'])
    st, measured = step(st, None, sharding.place(clean, mesh))
  assert measured['loss'] < first['loss'] and measured['streak'] == 0 and digest((st.params, st.opt_state)) != before


def linear(params, frozen, b, rng):
  """A loss of b[0], with gradient b[1] in each of two weights."""
  return {'x': b[0] + b[1] * jnp.sum(params['w'] - jax.lax.stop_gradient(params['w']))}, {'x': jnp.ones(())}, {}


def steady(k, scale=1.0):
  """Returns batch k of a run that goes down slowly and shakes a little."""
  return jnp.array([3.0 - 0.01 * k + 0.05 * np.sin(7 * k), 1.0 + 0.1 * np.cos(5 * k)], jnp.float32) * scale


def watched(window, tx=ADAM, sigma=6.0):
  """Returns (jitted step with the spike rule, its first state)."""
  step = jax.jit(make_step(linear, tx, seed=0, microbatches=1, clip=1.0, spike_sigma=sigma))
  return step, state.create({'w': jnp.zeros(2)}, tx, window)


@pytest.mark.parametrize('scale', [(20.0, 1.0), (1.0, 20.0)], ids=['loss', 'gradient'])
def test_a_spike_is_skipped_and_the_next_step_is_not(scale):
  """One of the two is not looked at, a spike moves Adam's moments, or it counts towards the end of the run."""
  step, st = watched(16)
  for k in range(20):
    st, measured = step(st, None, steady(k))
  assert measured['skipped'] == measured['spikes'] == 0
  before = digest((st.params, st.opt_state))
  st, measured = step(st, None, steady(20) * jnp.array(scale))
  assert digest((st.params, st.opt_state)) == before
  assert [int(measured[k]) for k in ('skipped', 'spikes', 'streak')] == [1, 1, 0] and st.step == 21
  st, measured = step(st, None, steady(21))
  assert digest((st.params, st.opt_state)) != before and measured['skipped'] == 1


def test_a_level_that_persists_is_accepted():
  """Skipped values are left out of the history, and from a harder corpus on the run never learns again."""
  step, st = watched(128)
  for k in range(128):
    st, _ = step(st, None, steady(k))
  skipped = []
  for k in range(128, 140):
    st, measured = step(st, None, steady(k, 3.0))
    skipped.append(int(measured['skipped']))
  assert skipped[:4] == [1, 2, 3, 4] and skipped[5:] == [skipped[5]] * 7


def test_the_spike_rule_waits_and_ignores_what_is_not_a_spike():
  """It judges by two values, takes rounding or a good step for a spike, or remembers NaN and is blind from then on."""
  step, st = watched(16)
  for k, scale in enumerate([1, 1, 50, 1, 1, 1, 1, 1]):  # half a window is not known before the ninth step
    st, measured = step(st, None, steady(k, scale))
  assert measured['skipped'] == 0
  step, st = watched(16)
  for _ in range(40):
    st, measured = step(st, None, jnp.array([0.1, 0.3]))
  assert measured['skipped'] == 0
  st, measured = step(st, None, jnp.array([0.001, 0.003]))
  assert measured['skipped'] == 0
  for poison in (np.nan, np.inf):
    st, measured = step(st, None, jnp.array([poison, 0.3]))
  assert [int(measured[k]) for k in ('skipped', 'spikes', 'streak')] == [2, 0, 2]
  assert np.isnan(st.recent.loss).sum() == np.isnan(st.recent.grad_norm).sum() == 2
  st, measured = step(st, None, jnp.array([9.0, 0.3]))
  assert [int(measured[k]) for k in ('skipped', 'spikes', 'streak')] == [3, 1, 0]


def test_without_the_rule_there_is_no_history():
  """Every run pays for it, and checkpoints from before it no longer fit."""
  st = state.create({'w': jnp.zeros(2)}, optax.sgd(1.0))
  assert list(tree_spec(st)) == ['step', 'params/w', 'skipped', 'streak']
  step = make_step(linear, optax.sgd(1.0), seed=0, microbatches=1, clip=1.0)
  _, measured = jax.eval_shape(step, st, None, steady(0))
  assert 'spikes' not in measured


def test_the_history_is_in_the_checkpoint(tmp_path):
  """A resumed run looks back on nothing, and takes a spike that the run without a break skips."""
  step, st = watched(8)
  batches = [steady(k, 30.0 if k in (11, 14) else 1.0) for k in range(20)]
  for b in batches[:13]:
    st, _ = step(st, None, b)
  saved = Checkpoints(str(tmp_path / 'c'), create=True)
  saved.save(13, st, {'data': None})
  saved.wait()
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), st)
  again, _ = saved.restore(target)
  saved.close()
  assert digest(again) == digest(st) and st.recent.spikes == 1
  for b in batches[13:]:
    (st, _), (again, _) = step(st, None, b), step(again, None, b)
  assert digest(again) == digest(st)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('clip', [1.0, np.inf])
def test_a_gradient_that_overflows_is_clipped_or_counted_but_never_zero(dtype, clip):
  """Its norm is infinite and updates are zero; or its square is, in Adam's moments, and the weight never moves."""
  step = jax.jit(make_step(linear, ADAM, seed=0, microbatches=1, clip=clip))
  st, _ = step(state.create({'w': jnp.zeros(2, dtype)}, ADAM), None, steady(0))
  before = digest((st.params, st.opt_state))
  for size in (1e38, 3e38):  # the norm is 1.4e38, then past float32's 3.4e38
    new, measured = step(st, None, jnp.array([1.0, size]))
    clipped = clip == 1.0 and size == 1e38
    np.testing.assert_allclose(measured['grad_norm'], 2**0.5 * size if size == 1e38 else np.inf, rtol=1e-2)
    assert measured['skipped'] == (0 if clipped else 1)
    assert (digest((new.params, new.opt_state)) == before) == (not clipped)
    after, measured = step(new, None, steady(1))
    assert 1e-3 < measured['update_norm'] < 0.1 and measured['streak'] == 0
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(after))


def test_what_does_not_fit_is_said_before_it_runs():
  """The first step ends in a page about HLO, or a fit is refused."""
  step = jax.jit(lambda x: jnp.tanh(x @ x) @ x, donate_argnums=0)
  fits = step.lower(jax.ShapeDtypeStruct((1024, 1024), jnp.float32)).compile()
  parts = memory.need(fits)
  assert parts['parameters, optimiser and batch'] == 4 * 2**20 and parts['results'] == 0
  assert 'on each device and 8 devices share' in memory.Budget(**KNOBS).check(fits)
  huge = step.lower(jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)).compile()
  with pytest.raises(BadInput) as e:
    memory.Budget(**KNOBS).check(huge)
  for words in (
    'a train step takes', 'GiB on each device and 8 devices share', 'parameters, optimiser and batch 4096.00 GiB',
    'raise train.microbatches = 1', "model.remat = 'none' to full", 'raise mesh.fsdp = 1', 'lower data.batch = 8',
  ):  # fmt: skip
    assert words in str(e.value), e.value


def test_memory_that_runs_out_in_a_step_is_the_same_sentence():
  """RESOURCE_EXHAUSTED is taken for a bug and retried for ever; or another error of XLA's for memory."""
  with pytest.raises(BadInput, match='memory ran out .RESOURCE_EXHAUSTED.*raise train.microbatches = 1'):
    with memory.Budget(**KNOBS):
      jax.jit(lambda: jnp.zeros((2**50,), jnp.int8))().block_until_ready()
  with pytest.raises(BadInput, match='memory ran out .MemoryError'):
    with memory.Budget(**KNOBS):
      raise MemoryError
  with pytest.raises(KeyError), memory.Budget(**KNOBS):
    raise KeyError


# The command line.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  assert Run(folder)() == 0
  return folder


@pytest.fixture
def again(trained, capsys):
  return Run(trained, capsys)


@pytest.mark.faults
def test_the_compute_dtype_may_change_and_is_said(again, trained, capsys):
  """Parameters are cast without a word: they stay float32, only the arithmetic changes."""
  settings = {'model.dtype': 'bfloat16', 'train.steps': 5, 'checkpoint.resume_from': trained / 'run'}
  assert again('bf16', **settings) == 0
  assert "model.dtype: 'float32' -> 'bfloat16'" in capsys.readouterr().err
  _, meta = Checkpoints(str(trained / 'bf16/checkpoints')).meta()
  assert {dtype for dtype, _ in meta['tree'].values()} == {'float32', 'int32'}


@pytest.mark.faults
def test_another_tokenizer_is_taken_only_where_it_is_asked_for_and_fits(again, trained, tmp_path, capsys):
  """The override is ignored, is silent, or lets ids through that the model has no row for."""
  small, large = tmp_path / 'small.model', tmp_path / 'large.model'
  small.write_bytes(tokenizer.train([TEXT.upper()], kind='bpe', vocab=284))
  large.write_bytes(tokenizer.train([TEXT + 'and a few more words'], kind='bpe', vocab=292))
  own = Checkpoints(str(trained / 'run/checkpoints')).meta()[1]
  fingerprint = tokenizer.Tokenizer(small.read_bytes()).fingerprint
  resume = {'checkpoint.resume_from': trained / 'run', 'train.steps': 5, 'tokenizer.path': small}
  both = ('was trained with tokenizer', fingerprint, 'of 290 entries', 'of 284')
  again.refused(*both, 'set tokenizer.override=True', workdir='o', **resume)
  again.refused(*both, 'set model.vocab=290', workdir='o', **resume, **{'tokenizer.override': True})
  too_large = resume | {'tokenizer.override': True, 'tokenizer.path': large}
  again.refused('give one of at most 290 entries', workdir='o', **too_large)
  again.refused('give one of at most 290 entries', workdir='o', **too_large, **{'model.vocab': 290})
  fitting = {'tokenizer.override': True, 'model.vocab': 290}
  assert again('o', **resume, **fitting) == 0
  assert 'tokenizer.override takes the latter, and step k reads batch k' in capsys.readouterr().err
  new = Checkpoints(str(trained / 'o/checkpoints')).meta()[1]
  assert new['tokenizer'] != own['tokenizer'] and new['data']['step'] == 5
  again.refused('seed: checkpoint 0, now 1', workdir='p', **resume, **fitting, seed=1)  # the rest is still compared
  init_from = {'checkpoint.init_from': trained / 'run', 'train.steps': 2, 'tokenizer.path': small}
  assert again('i', **init_from, **fitting) == 0
  assert 'tokenizer.override takes the latter\n' in capsys.readouterr().err


@pytest.mark.faults
def test_the_spike_rule_may_begin_at_a_resume(again, trained, capsys):
  """The run that diverges is the one that was started without it, and its checkpoint does not fit any more."""
  rule = {'train.spike_sigma': 6.0, 'train.spike_window': 4}
  origin = {'checkpoint.resume_from': trained / 'run'}
  assert again('on', **origin, **rule, **{'train.steps': 6}) == 0
  assert 'looked back on 0 steps and now does on 4' in capsys.readouterr().err
  assert [r['spikes'] for r in metrics.read(trained / 'on') if r['kind'] == 'train'] == [0, 0]
  assert again('on', **rule, **{'train.steps': 7}) == 0
  assert 'looked back' not in capsys.readouterr().err
  again.refused('train.spike_sigma = 0.0 must be positive', **{'train.spike_sigma': 0.0})
  again.refused('train.spike_window = 3 must be at least 4', **{'train.spike_window': 3})


def command(folder, workdir, env=(), limit=None, **settings):
  """Returns the running command line in a process of its own, logging to <workdir>.log. limit: address space, KiB."""
  text = folder / 'text.txt'
  text.write_text(TEXT)
  settings = {
    'data.folder': folder / 'rows', 'data.sources.readme.files': repr((str(text),)), 'train.steps': 4,
    'optim.warmup': 1, 'optim.schedule': 'constant', 'train.tensorboard': False, 'eval.every': 1000,
    'checkpoint.every': 2, 'model.layers': 1, 'tokenizer.vocab': 290, 'eval.rows': 8,
  } | settings  # fmt: skip
  argv = ['bash', '-c', f'ulimit -v {limit}; exec "$@"', 'bash'] if limit else []
  argv += [sys.executable, '-m', 'llmstack.main', '--config', 'configs/pretrain.py:tiny', '--workdir', folder / workdir]
  argv += [f'--config.{k}={v}' for k, v in settings.items()]
  env = dict(os.environ, JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES='1') | dict(env)
  with open(folder / f'{workdir}.log', 'a') as log:
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=log)


def finished(process, folder, workdir, status=0):
  """Returns what the process has logged; asserts its exit status."""
  code, log = process.wait(timeout=120), (folder / f'{workdir}.log').read_text()
  assert code == status, log[-3000:]
  return log


@pytest.mark.faults
def test_what_needs_no_device_is_refused_before_one_is_started(tmp_path):
  """Minutes of a pod's start-up are spent on a typo: here any use of a device ends with status 1."""
  cases = {
    'optim.lrr': 1, 'train.steps': 3.5, 'train.microbatches': 3, 'train.loss_chunk': 5, 'optim.name': 'adam',
    'optim.warmup': 99, 'train.bad_steps': 0, 'optim.clip': 0.0, 'data.batch': 0, 'train.spike_window': 0,
    'data.folder': 'gs://bucket/rows',
  }  # fmt: skip
  program = f"""
import sys
from llmstack.main import cli

for setting in sys.argv[1:]:
  try:
    cli(['llmstack', '--config', 'configs/pretrain.py:tiny', '--workdir', {str(tmp_path / 'run')!r}, setting])
  except SystemExit as e:
    print(e.code)
"""
  argv = [sys.executable, '-c', program, *(f'--config.{k}={v}' for k, v in cases.items())]
  out = subprocess.run(argv, env=dict(os.environ, JAX_PLATFORMS='nowhere'), capture_output=True, text=True, timeout=60)
  assert out.stdout.split() == ['78'] * len(cases), out
  assert not (tmp_path / 'run').exists()


@pytest.mark.faults
def test_address_space_that_is_too_small_is_refused_in_a_sentence(tmp_path):
  """bad_alloc, SIGABRT or the OOM killer, minutes into a run that could have been refused at its start."""
  settings = {'data.batch': 8192, 'model.width': 64, 'model.ff': 512, 'train.steps': 1, 'optim.warmup': 0}
  limit = 4 * 2**20
  log = finished(command(tmp_path, 'run', limit=limit, **settings), tmp_path, 'run', status=78)
  sentence = log.split('error: ')[-1]
  print(sentence)
  for words in ('on each device', 'temporaries', '(ulimit -v)', 'train.microbatches = 1', 'data.batch = 8192'):
    assert words in sentence, log[-3000:]
  assert 'Traceback' not in log and not (tmp_path / 'run/metrics.jsonl').exists()
  # The first knob is enough for the step, and not for the evaluation after it: that is the run-time half.
  log = finished(
    command(tmp_path, 'fixed', limit=limit, **settings, **{'train.microbatches': 256}), tmp_path, 'fixed', 78
  )
  print(log.split('error: ')[-1])
  assert 'memory ran out (' in log and 'evaluation comes on top, with data.batch = 8192' in log
  assert 'step      1/1' in log and 'Traceback' not in log


@pytest.mark.faults
def test_killed_while_spikes_are_skipped_is_never_killed(tmp_path):
  """The history or its count is a step behind after a kill, and another update is skipped."""
  rule = {
    'train.steps': 60, 'train.spike_sigma': 1.5, 'train.spike_window': 8, 'checkpoint.every': 5, 'train.log_every': 1,
  }  # fmt: skip
  finished(command(tmp_path, 'whole', **rule), tmp_path, 'whole')
  process = command(tmp_path, 'killed', **rule)
  while not [r for r in metrics.read(tmp_path / 'killed') if r['step'] >= 26] and process.poll() is None:
    time.sleep(0.005)
  process.kill()
  assert process.wait() == -9, 'it ended before it could be killed'
  at = max(r['step'] for r in metrics.read(tmp_path / 'killed'))
  log = finished(command(tmp_path, 'killed', **rule), tmp_path, 'killed')
  tx = optim.make(name='adamw', rate=lambda t: t, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])

  def result(name):
    saved = Checkpoints(str(tmp_path / name / 'checkpoints'))
    cfg = ModelConfig(**saved.meta()[1]['model'])
    st, _ = saved.restore(state.shapes_of(lambda: init(cfg, jax.random.key(0)), tx, mesh, 8))
    rows = [r for r in metrics.read(tmp_path / name) if r['kind'] == 'train']
    return digest(st), [(r['step'], r['crc'], r['loss'], r['skipped'], r['spikes']) for r in rows]

  whole, killed = result('whole'), result('killed')
  spikes = [r[-1] for r in whole[1]]
  print(
    f'killed after step {at},', log.split('continuing')[-1].splitlines()[0], '; spikes by 20, 40, 60:', spikes[19::20]
  )
  print('whole', whole[0], 'killed', killed[0])
  assert whole == killed and len(spikes) == 60 and 0 < spikes[39] < spikes[59]


MESHES = {
  '8': dict(data=8), '4': dict(data=4), '2': dict(data=2), '1': dict(data=1),
  'fsdp 8': dict(data=1, fsdp=8), 'tensor 8': dict(data=1, tensor=8), '2x2x2': dict(data=2, fsdp=2, tensor=2),
}  # fmt: skip


@pytest.mark.faults
def test_every_topology_restores_the_same_bits_and_goes_on(tmp_path):
  """A restore on fewer devices, or from fsdp to tensor, permutes or pads a shard: 8 -> 4 -> 2 -> 1 and back."""
  cfg = model('llama_tiny', heads=8, kv_heads=8)
  fresh, tx = (lambda: init(cfg, jax.random.key(0))), optax.adamw(1e-2)
  loss = lm_loss(cfg, z_loss=0.0, chunk=None)

  def layout(name):
    sizes = MESHES[name]
    return sharding.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])

  def go(mesh, st, steps=2):
    with jax.set_mesh(mesh):
      out = (jax.tree.map(lambda x: x.sharding, state.shapes_of(fresh, tx, mesh, 8)), None)
      rule = make_step(loss, tx, seed=0, microbatches=1, clip=1.0, spike_sigma=6.0)
      step, losses = jax.jit(rule, out_shardings=out), []
      for _ in range(steps):
        st, measured = step(st, None, sharding.place(batch(8, 16, seed=int(st.step)), mesh))
        losses.append(float(measured['loss']))
    return st, losses

  begin = layout('8')
  with jax.set_mesh(begin):
    st, _ = go(begin, state.init_sharded(fresh, tx, begin, 8))
  want, (final, going_on) = digest(st), go(begin, st)
  worst = 0.0
  for i, name in enumerate(['4', '2', '1', 'fsdp 8', 'tensor 8', '2x2x2', '8']):
    saved, mesh = Checkpoints(str(tmp_path / str(i)), create=True), layout(name)
    saved.save(2, st, {'data': None})
    saved.wait()
    st, _ = saved.restore(state.shapes_of(fresh, tx, mesh, 8))
    saved.close()
    assert digest(st) == want, name
    new, losses = go(mesh, st)
    worst = max(worst, np.abs(np.array(losses) - going_on).max())
    np.testing.assert_allclose(losses, going_on, atol=1e-5, err_msg=name)
    close(new.params, final.params, 1e-4)
  print('largest difference of the loss:', worst)


@pytest.mark.faults
def test_the_command_line_goes_on_with_fewer_devices(tmp_path):
  """The batch order depends on the devices, or a resume insists on the mesh of the checkpoint: 8 -> 4 -> 2 -> 1."""
  settings = {'checkpoint.every': 2, 'train.log_every': 1, 'model.heads': 8, 'model.kv_heads': 8, 'model.head_width': 4}
  finished(command(tmp_path, 'whole', **settings, **{'train.steps': 8}), tmp_path, 'whole')
  layouts = [('8', {'mesh.fsdp': 8}), ('4', {'mesh.tensor': 2, 'mesh.fsdp': 2}), ('2', {'mesh.tensor': 2}), ('1', {})]
  for i, (devices, mesh) in enumerate(layouts):
    env = {'JAX_NUM_CPU_DEVICES': devices}
    finished(command(tmp_path, 'parts', env, **settings, **mesh, **{'train.steps': 2 * i + 2}), tmp_path, 'parts')
  rows = lambda name: [r for r in metrics.read(tmp_path / name) if r['kind'] == 'train']  # noqa: E731
  assert [r['crc'] for r in rows('parts')] == [r['crc'] for r in rows('whole')]
  off = np.abs(np.array([r['loss'] for r in rows('parts')]) - [r['loss'] for r in rows('whole')])
  print('loss differs by', off)
  assert len(off) == 8 and off.max() < 1e-5
