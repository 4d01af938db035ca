"""`llmstack bench train|prefer|rl|rollout|decode|data`: one JSON line, so that runs can be paired with those of others.

Sizes are those of nanoGPT's CPU runs and up: S = 4 layers, width 128, 4 heads, 64 tokens x 12 rows, 65 entries;
M = 6, 384, 6, 256 x 16, 65; L = 12, 768, 12, 512 x 4, 32,000; for accelerators 125M = 12, 768, 12, 1,024 x 16, 50,304
and 1B = 24, 1,792, 14, 1,024 x 8, 50,304. All have GPT-2's blocks, for `train` and `data`.
`prefer` is a DPO step of a Llama of that size (feed-forward 8/3 of the width), half of the rows as pairs, the first
quarter of each being the prompt, computed once for both, beside a frozen reference. `--precomputed` reads the
reference's log-probs instead, `--two-sided` computes the prompt twice; tokens are counted as if it did, either way.
`rl` is an iteration of GRPO of that Llama by tasks/online.py: 2 prompts of 16 tokens, 8 completions of each, of 64
tokens that nothing ends, a reward of their ids, one update.
`rollout` is a Llama of that size which samples 8 completions of each prompt of 16 tokens until one of two tokens of 64
ends it, about 32 tokens, at most 256: refilled from a queue beside batch after batch, each as long as its longest.
`decode` is a Llama of 12 layers, width 768, 12 heads and 32,000 entries: prompt 64, 128 new tokens, greedy.
Weights and tokens are random. float32 on a CPU, bfloat16 elsewhere.
"""

import argparse
import dataclasses
import glob
import itertools
import json
import os
import re
import resource
import sys
import tempfile
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from llmstack import memory, metrics, optim, rewards, sharding, state
from llmstack import step as steps
from llmstack.data import batch as batches
from llmstack.data import packing, pipeline
from llmstack.data.prompts import Prompt
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.rollout import rollout
from llmstack.infer.sampling import Sampling
from llmstack.model import ModelConfig, init, parameters, ready, train_flops_per_token
from llmstack.model.kernels import AHEAD
from llmstack.tasks import online, rl
from llmstack.tasks.prefer import Objective
from llmstack.tasks.pretrain import lm_loss
from llmstack.tasks.train import checksum
from llmstack.tasks.tune import hidden_of

SIZES = {  # layers, width, heads, length, batch, vocabulary, microbatches
  'S': (4, 128, 4, 64, 12, 65, 2),
  'M': (6, 384, 6, 256, 16, 65, 8),
  'L': (12, 768, 12, 512, 4, 32_000, 4),
  '125M': (12, 768, 12, 1024, 16, 50_304, 1),
  '1B': (24, 1792, 14, 1024, 8, 50_304, 1),
}
PROMPT, NEW = 64, 128  # tokens


def model(layers, width, heads, length, vocab, **changes):
  """Returns a GPT-2 of these sizes, with `changes`."""
  return ModelConfig(**dict(
    vocab=vocab, layers=layers, width=width, heads=heads, kv_heads=heads, head_width=width // heads, ff=4 * width,
    length=length, norm='layer', norm_eps=1e-5, post_norm=False, act='gelu', gated=False, bias=False,
    positions='learned', rope_theta=1e4, qk_norm=False, attn_softcap=None, logit_softcap=None, windows=(), tied=True,
    scale_embed=False, dropout=0.0, init_std=0.02, dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
    attention='blocks', scan=False, remat='none',
  ) | changes)  # fmt: skip


def llama(width):
  """Returns what makes a Llama of `model`."""
  return dict(norm='rms', ff=width * 8 // 3 // 64 * 64, act='silu', gated=True, positions='rope')


def age():
  """Returns seconds since this process was started, Python's own start included. Linux only."""
  with open('/proc/self/stat') as f, open('/proc/uptime') as up:
    return float(up.read().split()[0]) - int(f.read().rsplit(') ')[-1].split()[19]) / os.sysconf('SC_CLK_TCK')


def peak_rss():
  """Returns the most memory that this process has held, MB."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def timed(f, n):
  """Returns seconds of n calls. f() must wait for its result."""
  out = []
  for _ in range(n):
    t = time.perf_counter()
    f()
    out.append(time.perf_counter() - t)
  return out


def bandwidth():
  """Returns bytes/s at which memory is read: the sum of 512 MB."""
  x = jax.block_until_ready(jnp.ones((2**27,), jnp.float32))
  read = jax.jit(lambda x: jnp.sum(x.reshape(8, -1), axis=1))
  jax.block_until_ready(read(x))
  return x.nbytes / min(timed(lambda: jax.block_until_ready(read(x)), 5))


def train(args):
  """Returns the figures of the train step: AdamW, clipping, random rows, measurements read one step late, as a run."""
  layers, width, heads, length, rows, vocab, microbatches = SIZES[args.size]
  microbatches = args.microbatches or microbatches
  cfg = model(layers, width, heads, length, vocab, **args.model)
  mesh = sharding.make_mesh()
  tx = optim.make(name='adamw', rate=lambda _: 1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  loss_fn = lm_loss(cfg, z_loss=0.0, chunk=None)
  r = np.random.RandomState(0)

  drawn = r.randint(0, vocab, (args.steps + 4, rows, length + 1)).astype(np.int32)
  made = (batches.targets(tokens, np.ones((rows, length + 1), int)) for tokens in drawn)
  batch = lambda: sharding.place(next(made), mesh)  # noqa: E731

  with jax.set_mesh(mesh):
    # As a run does: the step is compiled before the state exists.
    fresh = lambda: init(cfg, jax.random.key(0))  # noqa: E731
    target = state.shapes_of(fresh, tx, mesh)
    update = jax.jit(
      steps.make_step(loss_fn, tx, seed=0, microbatches=microbatches, clip=1.0), donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, target), None),
    )  # fmt: skip
    begun = time.perf_counter()
    compiled = update.lower(target, None, batch()).compile()
    compile_s = time.perf_counter() - begun
    memory.trim()
    st = state.init_sharded(fresh, tx, mesh)
    memory.trim()
    box = [st, None]
    del st

    def one():
      before = box[1]
      box[:] = compiled(box[0], None, batch())
      jax.block_until_ready(before)

    one()
    jax.block_until_ready(box[1])
    first = age()
    one()
    seconds = timed(one, args.steps)
    rss = peak_rss()  # before the matmul below
    table = profile(one, args.profile)
  step_s = float(np.median(seconds))
  flops, limit = train_flops_per_token(cfg, length) * rows * length, metrics.peak_flops()
  return {
    'tokens_per_s': rows * length / step_s, 'step_ms': step_s * 1e3, 'steps_ms': [s * 1e3 for s in seconds],
    'first_step_s': first, 'compile_s': compile_s, 'peak_rss_mb': rss, 'temp_mb':
    compiled.memory_analysis().temp_size_in_bytes / 1e6, 'parameters': parameters(cfg)[0], 'microbatches': microbatches,
    'gflops': flops / step_s / 1e9, 'limit_gflops': limit and limit / 1e9, 'mfu': limit and flops / step_s / limit,
  }, table  # fmt: skip


def characters(ids):
  """Returns str: a character for each id."""
  return ''.join(chr(0x4E00 + i) for i in ids)


class Whole:
  """A model of which all parameters are trained, as prefer.Objective and online.Online want it; it has no files."""

  critic, tokenizer = 'none', types.SimpleNamespace(pad=0)
  template = types.SimpleNamespace(stops=[], reply=characters)

  def __init__(self, cfg):
    self.cfg = cfg

  def policy(self, params):
    return params

  def join(self, params, frozen):
    return params

  def hidden(self, params, frozen, batch, rng):
    return params, hidden_of(self.cfg, params, batch)


def preference(args):
  """Returns the figures of a DPO step as a run makes it: AdamW, clipping, the reference's forward pass included."""
  layers, width, heads, length, rows, vocab, microbatches = SIZES[args.size]
  microbatches, pairs, vocab = args.microbatches or microbatches, rows // 2, args.vocab or vocab
  cfg = model(layers, width, heads, length, vocab, **llama(width) | args.model)
  if not args.two_sided and cfg.attention not in AHEAD:
    raise BadInput(f'attention {cfg.attention!r} computes no prompt once for two: add --two-sided')
  mesh = sharding.make_mesh()
  tx = optim.make(name='adamw', rate=lambda _: 1e-6, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  how = dict(terms={'sigmoid': 1.0}, beta=0.1, label_smoothing=0.0, normalise=False)
  objective = Objective(Whole(cfg), 'dpo', chunk=None, soft_labels=False, **how)
  r = np.random.RandomState(0)
  tokens = r.randint(0, vocab, (args.steps + 4, pairs, 2, length + 1)).astype(np.int32)
  shared = length // 4  # and one more, with which the sides begin
  tokens[..., : shared + 1] = tokens[:, :, :1, : shared + 1]
  ones, one = np.ones(tokens.shape[1:], np.int32), np.ones((pairs, 1), np.float32)
  fields = dict(segments=ones, mask=ones * (np.arange(length + 1) > shared), margin=0 * one, label=one)

  def laid_out(tokens):
    sides = {'tokens': tokens, **fields}
    if args.two_sided:
      return batches.make(sides)
    ahead = dict(prompt=tokens[:, 0, :shared], prompt_segments=ones[:, 0, :shared])
    return batches.make({k: x[..., shared:] if x.ndim == 3 else x for k, x in sides.items()} | ahead)

  with jax.set_mesh(mesh):
    fresh = lambda: init(cfg, jax.random.key(0))  # noqa: E731
    params = jax.jit(fresh)()
    frozen = {'ref': jax.tree.map(jnp.copy, params)}
    made = [laid_out(t) for t in tokens]
    if args.precomputed:
      score = jax.jit(objective.ref_logp)
      for batch in made:
        batch['ref_logp'] = np.asarray(score(frozen, batch))
      frozen = {}
    made = iter(made)
    batch = lambda: sharding.place(next(made), mesh, batches.letters)  # noqa: E731
    update = jax.jit(
      steps.make_step(objective.loss, tx, seed=0, microbatches=microbatches, clip=1.0), donate_argnums=0
    )  # fmt: skip
    box = [state.around(params, tx, mesh), None]
    del params
    compiled = update.lower(box[0], frozen, batch()).compile()
    memory.trim()
    losses = []

    def step():
      before = box[1]
      box[:] = compiled(box[0], frozen, batch())
      jax.block_until_ready(before)
      losses.append(box[1]['loss'])

    step()
    jax.block_until_ready(box[1])
    first = age()
    step()
    seconds = timed(step, args.steps)
    rss = peak_rss()
    table = profile(step, args.profile)
  step_s = float(np.median(seconds))
  return {
    'tokens_per_s': pairs * 2 * length / step_s, 'step_ms': step_s * 1e3, 'steps_ms': [s * 1e3 for s in seconds],
    'first_step_s': first, 'peak_rss_mb': rss, 'parameters': parameters(cfg)[0], 'vocab': vocab,
    'precomputed': args.precomputed, 'two_sided': args.two_sided, 'microbatches': microbatches,
    'loss_first': float(losses[0]), 'loss_last': float(losses[-1]),
  }, table  # fmt: skip


def learning(args):
  """Returns the figures of an iteration of GRPO as a run makes it: rollout, rewards, AdamW, gate and measurements."""
  layers, width, heads, _, _, vocab, _ = SIZES[args.size]
  prompts, samples, prompt, new_tokens = 2, 8, 16, 64
  rows, length = prompts * samples, prompt + new_tokens
  vocab, microbatches = args.vocab or vocab, args.microbatches or 1
  cfg, mesh = model(layers, width, heads, length, vocab, **llama(width) | args.model), sharding.make_mesh()
  config = ConfigDict({
    'seed': 0, 'critic': {'kind': 'none'}, 'kl': {'placement': 'none', 'beta': 0.0, 'target': None},
    'train': {'loss_chunk': None}, 'data': {'batch': rows, 'length': length, 'packing': 'padded'},
    'rollout': {
      'prompts': prompts, 'samples': samples, 'new_tokens': new_tokens, 'temperature': 1.0, 'slots': rows,
      'refill': rows, 'gate': 1e-4, 'dynamic': False, 'rounds': 1, 'gold': None, 'alarm': 20,
    },
    'objective': {
      'kind': 'policy', 'baseline': 'mean', 'scale': 'group', 'eps': 1e-4, 'whiten': False, 'scale_rewards': False,
      'mask_truncated': False, 'epochs': 1, 'old': 'sampler', 'importance': None, 'ratio': 'token', 'entropy': 0.0,
      'surrogate': 'clip', 'clip_low': 0.2, 'clip_high': 0.2, 'dual_clip': None, 'tau': None, 'aggregate': 'sequence',
      'divisor': None,
    },
  })  # fmt: skip
  tuned, rate = Whole(cfg), 1e-6
  reward = rewards.Rewards({
    'even': (1.0, lambda prompts, completions, info: np.array([np.mean(np.array(i['ids']) % 2 == 0) for i in info]))
  })  # fmt: skip
  learner, sampler = rl.Policy(config, tuned), online.Sampler(tuned, reward, mesh, config)
  drawn = np.random.RandomState(0).randint(0, vocab, ((args.steps + 4) * prompts, prompt)).tolist()
  listed = online.Listed([Prompt(ids, [{'role': 'user', 'content': characters(ids)}], {}) for ids in drawn], '')
  stream = online.Stream(listed, lambda i: i % len(drawn), 0, prompts)
  tx = optim.make(name='adamw', rate=lambda _: rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  inner = steps.make_step(learner.loss, tx, seed=0, microbatches=microbatches, clip=1.0)

  def one_step(state, frozen, batch):
    new, measured = inner(state, frozen, batch)
    return new, measured | {'crc': checksum(batch), 'lr': jnp.float32(rate)}

  with jax.set_mesh(mesh):
    fresh = lambda: init(cfg, jax.random.key(0))  # noqa: E731
    target = state.shapes_of(fresh, tx, mesh)
    layout = jax.tree.map(lambda x: x.sharding, target)

    def compiled(shapes):
      return jax.jit(one_step, donate_argnums=0, out_shardings=(layout, None)).lower(target, {}, shapes).compile()

    loop = online.Online(config, tuned, {}, stream, {}, sampler, learner, mesh)
    quiet, unsaved = types.SimpleNamespace(beat=lambda _: None), types.SimpleNamespace(resumes=False)
    loop.begin(compiled(loop.shapes()), compiled, None, quiet, unsaved)
    memory.trim()
    box, number, parts = [state.init_sharded(fresh, tx, mesh)], itertools.count(), []

    def iteration():
      box[0], measured = loop.step(box[0], {'step': np.array(next(number))})
      parts.append(measured)

    iteration()
    first = age()
    iteration()
    seconds = timed(iteration, args.steps)
    rss, last = peak_rss(), parts[-args.steps :]
    table = profile(iteration, args.profile)
  if {float(x['length']) for x in parts} != {new_tokens}:
    raise BadInput(f'a completion has not {new_tokens} tokens')
  median = lambda name: float(np.median([x[name] for x in last])) * 1e3  # noqa: E731
  return {
    'tokens_per_s': rows * new_tokens / float(np.median(seconds)), 'step_ms': float(np.median(seconds)) * 1e3,
    'rollout_ms': median('rollout_s'), 'update_ms': median('update_s'), 'steps_ms': [s * 1e3 for s in seconds],
    'first_step_s': first, 'peak_rss_mb': rss, 'parameters': parameters(cfg)[0], 'vocab': vocab,
    'microbatches': microbatches, 'reward': float(last[-1]['reward']),
    'grad_norm': float(last[-1]['grad_norm']),
  }, table  # fmt: skip


def rollouts(args):
  """Returns the figures of completions of uneven length, sampled in three ways by turns; all say the same.

  padded: decode.generate, batch after batch, each as long as its longest. batches: the same by `rollout`, whose caches
  grow and whose batches shrink. refilled: `rollout` of the whole queue.
  """
  layers, width, heads, *_ = SIZES[args.size]
  prompt, cap, samples, vocab = 16, 256, 8, 64
  cfg = model(layers, width, heads, prompt + cap, vocab, **llama(width) | args.model)
  mesh, Q = sharding.make_mesh(), args.queue
  stops, r = decode.stop_table([[0], [1]]), np.random.RandomState(0)
  prompts = [p for p in r.randint(2, vocab, (-(-Q // samples), prompt)).tolist() for _ in range(samples)][:Q]
  parts = [slice(i, i + args.slots) for i in range(0, Q, args.slots)]
  params = jax.jit(lambda: init(cfg, jax.random.key(0)))()

  def refilled(seeds, some=slice(None)):
    return rollout(
      cfg, params, prompts[some], seeds[some], mesh=mesh, slots=args.slots, refill=args.refill, new_tokens=cap,
      temperature=1.0, stops=stops, pad=0,
    ).tokens  # fmt: skip

  def batches(seeds):
    return np.concatenate([refilled(seeds, some) for some in parts])

  def padded(seeds):
    out = []
    for some in parts:
      tokens, lengths = decode.pad_prompts(prompts[some], limit=prompt, pad=0)
      keys, sampling = decode.row_keys(seeds[some]), Sampling.of(len(tokens), vocab)
      with jax.set_mesh(mesh):
        said = decode.generate(cfg, params, tokens, lengths, keys, sampling, stops, new_tokens=cap, pad=0)
      out.append(np.asarray(said.tokens))
    return np.concatenate(out)

  ways, seconds, lengths, same = (padded, batches, refilled), [], [], True
  for turn in range(args.steps + 1):
    seeds = np.arange(Q, dtype=np.uint32) + (turn or 1) * Q  # the first turn compiles what the second needs
    box = []
    seconds.append([timed(lambda f=f, seeds=seeds, box=box: box.append(f(seeds)), 1)[0] for f in ways])
    same &= all((said == box[0]).all() for said in box)
    # A stop token is 0, as padding is, or 1: a row is as long as to the first of them.
    lengths.append([int(np.argmax(row < 2)) + 1 if (row < 2).any() else cap for row in box[0]])
  times, lengths = np.array(seconds[1:]), np.array(lengths[1:])
  longest = sum(lengths[:, some].max(1).sum() for some in parts)
  print(f'{"":10}{"s":>8}{"tokens/s":>10}{"x padded":>10}', file=sys.stderr)
  for i, f in enumerate(ways):
    gain = np.median(times[:, 0] / times[:, i])
    print(
      f'{f.__name__:10}{np.median(times[:, i]):8.3f}{lengths.sum() / times[:, i].sum():10.0f}{gain:10.2f}',
      file=sys.stderr,
    )
  return {
    'queue': Q, 'slots': args.slots, 'refill': args.refill, 'tokens_mean': float(lengths.mean()),
    'tokens_longest': int(lengths.max()), 'padded_share': float(1 - lengths.sum() / (longest * args.slots)),
    'same_tokens': bool(same), 'refilled_x_padded': float(np.median(times[:, 0] / times[:, 2])),
    'refilled_x_batches': float(np.median(times[:, 1] / times[:, 2])),
    'tokens_per_s': float(lengths.sum() / times[:, 2].sum()), 'seconds': times.round(3).tolist(),
    'first_turn_s': [round(s, 1) for s in seconds[0]], 'peak_rss_mb': peak_rss(),
  }, profile(lambda: refilled(seeds), args.profile)  # fmt: skip


def generate(args):
  """Returns the figures of generation, prefill included, and of one token at two places of a 1,024 cache."""
  cfg = model(12, 768, 12, 1024, 32_000, norm='rms', ff=2048, act='silu', gated=True, positions='rope', tied=False)
  cfg = dataclasses.replace(cfg, **args.model)
  rows = args.batch
  params = jax.jit(lambda: ready(cfg, init(cfg, jax.random.key(0)), rows))()
  tokens = jnp.asarray(np.random.RandomState(0).randint(0, cfg.vocab, (rows, PROMPT)), jnp.int32)
  lengths = jnp.full((rows,), PROMPT, jnp.int32)
  keys, stops = decode.row_keys(range(rows)), decode.stop_table([])
  greedy = Sampling.of(rows, cfg.vocab, temperature=0.0)

  def one(new_tokens=NEW):
    jax.block_until_ready(
      decode.generate(cfg, params, tokens, lengths, keys, greedy, stops, new_tokens=new_tokens, pad=0)
    )

  begun = time.perf_counter()
  one()
  first, call_s = age(), time.perf_counter() - begun
  seconds = timed(one, args.steps)
  rss = peak_rss()  # before the long prompts and the sum below
  table = profile(one, args.profile)
  total = float(np.median(seconds))
  token = jax.jit(decode.decode_one, static_argnums=0, donate_argnums=2)
  prefill = jax.jit(decode.prefill, static_argnums=0, donate_argnums=4)
  at = {}
  for place in (100, 1000):
    long = jnp.asarray(np.random.RandomState(1).randint(0, cfg.vocab, (rows, place)), jnp.int32)
    box = [prefill(cfg, params, long, jnp.full((rows,), place, jnp.int32), decode.allocate(cfg, rows, cfg.length))]

    def next_one(box=box):
      box[0], out = token(cfg, params, box[0], keys, greedy, stops)
      jax.block_until_ready(out)

    next_one()
    at[place] = float(np.median(timed(next_one, 15))) * 1e3
  held, speed = sum(x.nbytes for x in jax.tree.leaves(params)) - cfg.vocab * cfg.width * 4, bandwidth()
  step_s = at[100] / 1e3
  return {
    'batch': rows, 'tokens_per_s': rows * NEW / total, 'seconds': seconds, 'first_call_s': first,
    'compile_s': call_s - total, 'peak_rss_mb': rss, 'token_ms_at_100': at[100], 'token_ms_at_1000': at[1000],
    'limit_gb_per_s': speed / 1e9, 'of_bandwidth': held / step_s / speed,
  }, table  # fmt: skip


def rows(args):
  """Returns the figures of reading packed rows into batches, as the loop does, without a model."""
  *_, length, batch, vocab, _ = SIZES[args.size]
  n, r = max(20_000_000 // length, 1000), np.random.RandomState(0)
  with tempfile.TemporaryDirectory() as folder:
    ones = np.ones(length + 1, np.int32)
    made = ((r.randint(0, vocab, length + 1).astype(np.int32), ones) for _ in range(n))
    begun = time.perf_counter()
    fields = dict(tokenizer='', split='train')
    packing.write_rows(made, f'{folder}/rows', vocab=vocab, seed=0, manifest_fields=fields)
    written = time.perf_counter() - begun
    mixture = pipeline.Mixture({'rows': pipeline.Rows(f'{folder}/rows')}, {'rows': 1.0}, seed=0, batch=batch)
    stop = 10_000_000 // (batch * length)
    iterator = mixture.iterate(0, stop)
    next(iterator)
    first, cpu, begun = age(), time.process_time(), time.perf_counter()
    for _ in iterator:
      pass
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    iterator.close()
  tokens = (stop - 1) * batch * length
  return {
    'tokens_per_s': tokens / seconds, 'tokens_per_cpu_s': tokens / cpu, 'rows_written_per_s': n / written,
    'first_batch_s': first, 'peak_rss_mb': peak_rss(),
  }, None  # fmt: skip


def profile(f, folder):
  """Returns lines of where the time of f() goes, by XLA operation, and leaves a trace for Perfetto in `folder`."""
  if folder is None:
    return None
  jax.profiler.start_trace(folder)
  f()
  jax.profiler.stop_trace()
  path = max(glob.glob(f'{folder}/**/*.xplane.pb', recursive=True), key=os.path.getmtime)
  spent, calls = {}, {}
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    for line in plane.lines:
      for event in line.events:
        # Python's own frames begin with $; a program's total would count its operations twice.
        if event.name.startswith('$') or any(w in event.name for w in ('Execut', 'Pjit', 'Thread', 'wait', '::')):
          continue
        name = re.sub(r'[.\d]+$', '', event.name)
        spent[name] = spent.get(name, 0) + event.duration_ns / 1e6
        calls[name] = calls.get(name, 0) + 1
  total = sum(spent.values())
  table = sorted(spent, key=spent.get, reverse=True)[:20]
  lines = [f'{spent[n]:9.1f} ms {spent[n] / total:5.0%} {calls[n]:6d} x  {n}' for n in table]
  return [*lines, f'{total:9.1f} ms  all operations, over all threads; trace in {os.path.dirname(path)}']


BENCHES = {'train': train, 'prefer': preference, 'rl': learning, 'rollout': rollouts, 'decode': generate, 'data': rows}


def command(argv):
  """Prints one JSON line, and a table on standard error with --profile."""
  parser = argparse.ArgumentParser('llmstack bench', description='One JSON line of speed and memory.')

  def refuse(message):
    raise BadInput(f'{message}: {" ".join(parser.format_usage().split())}')

  parser.error = refuse
  parser.add_argument('what', choices=BENCHES)
  parser.add_argument('--size', choices=SIZES, default='S', help='of train and data')
  parser.add_argument('--batch', type=int, default=1, help='sequences, of decode')
  parser.add_argument('--queue', type=int, default=64, help='completions, of rollout')
  parser.add_argument('--slots', type=int, default=16, help='rows decoded at a time, of rollout')
  parser.add_argument('--refill', type=int, default=4, help='free rows that are waited for, of rollout')
  parser.add_argument('--steps', type=int, default=5, help='timed steps, or calls of decode, or turns of rollout')
  parser.add_argument('--microbatches', type=int, help='of train; the default depends on the size')
  parser.add_argument('--vocab', type=int, help='entries, of prefer and rl; the default is that of the size')
  parser.add_argument('--precomputed', action='store_true', help='of prefer: read the log-probs of the reference')
  parser.add_argument('--two-sided', action='store_true', help='of prefer: compute the prompt of a pair twice')
  parser.add_argument('--model', type=json.loads, default={}, help='JSON of model settings, {"attention": "einsum"}')
  parser.add_argument('--profile', metavar='DIR', help='write a trace there and print where the time goes')
  args = parser.parse_args(argv)
  for name in args.model:
    if name not in vars(ModelConfig)['__dataclass_fields__']:
      raise BadInput(f'--model has no setting {name!r}: see configs/sizes.py')
  if min(args.batch, args.queue, args.slots, args.steps, args.microbatches or 1) < 1:
    raise BadInput('--batch, --queue, --slots, --steps and --microbatches must be at least 1')
  figures, table = BENCHES[args.what](args)
  figures = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
  where = {'size': args.size if args.what != 'decode' else 'decode', 'device': jax.devices()[0].device_kind}
  print(json.dumps({'bench': args.what, **where, 'devices': jax.device_count(), 'jax': jax.__version__} | figures))
  if table:
    print('\n'.join(table), file=sys.stderr)
