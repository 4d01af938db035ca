"""Text from a checkpoint: completions of a prompt, or a prompt line that streams."""

import base64
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmstack import sharding
from llmstack.checkpoint import Checkpoints
from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.model import ModelConfig, allocate, init


class Text(NamedTuple):
  text: str  # the completion, without the prompt
  ids: list  # the prompt's, BOS included
  tokens: np.ndarray  # int32[n] sampled, EOS included
  logp: np.ndarray  # float32[n] under the model
  done: bool  # false where new_tokens ended it


def encode_prompt(tokenizer, prompt):
  """Returns the ids of a prompt with its BOS, where the tokenizer has one."""
  return ([] if tokenizer.bos is None else [tokenizer.bos]) + tokenizer.encode(prompt).tolist()


def stops_of(tokenizer, stop):
  """Returns the stop table of EOS and of each string in `stop`, as the tokenizer spells it on its own."""
  return decode.stop_table(
    ([] if tokenizer.eos is None else [[tokenizer.eos]]) + [tokenizer.encode(s).tolist() for s in stop]
  )


def complete(
  cfg, params, tokenizer, prompts, *, mesh, new_tokens, seeds,
  temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, stop=(),
):  # fmt: skip
  """Returns a Text per prompt. seeds: int per prompt, so that each draws alone what it draws in a batch.

  Raises: BadInput for a prompt that leaves no room for new_tokens in model.length.
  """
  if not len(prompts):
    return []
  prompts = [encode_prompt(tokenizer, p) for p in prompts]
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  extra = -len(prompts) % ways  # rows that fill the last device; dropped below
  limit = cfg.length - new_tokens
  tokens, lengths = decode.pad_prompts(prompts + prompts[:1] * extra, limit=limit, pad=tokenizer.pad)
  sampling = Sampling.of(len(tokens), cfg.vocab, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
  keys = decode.row_keys([*seeds] + [0] * extra)
  with jax.set_mesh(mesh):
    out = decode.generate(
      cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), keys, sampling, stops_of(tokenizer, stop),
      new_tokens=new_tokens, pad=tokenizer.pad,
    )  # fmt: skip
  out = jax.device_get(out)
  texts = []
  for i, ids in enumerate(prompts):
    sampled = out.tokens[i][out.sampled[i]]
    # Decoded together with the prompt: a leading space belongs to the completion.
    text = tokenizer.decode([*ids, *sampled.tolist()])[len(tokenizer.decode(ids)) :]
    texts.append(Text(text, ids, sampled, out.logp[i][out.sampled[i]], bool(out.done[i])))
  return texts


def load(workdir, step, mesh):
  """Returns (cfg, params, tokenizer, step) of a checkpoint, laid out on the mesh."""
  saved = Checkpoints(os.path.join(workdir, 'checkpoints'))
  step, meta = saved.meta(step)
  cfg = ModelConfig(**meta['model'])
  shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
  sharding.check_divisible(shapes, mesh)
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.param_shardings(shapes, mesh),
  )
  params = saved.restore({'params': target}, step)[0]['params']
  return cfg, params, Tokenizer(base64.b64decode(meta['tokenizer'])), step


def stream(cfg, params, tokenizer, prompt, *, new_tokens, seed, stop=(), **how):
  """Yields the completion of one prompt piece by piece, as soon as each character is whole."""
  ids = encode_prompt(tokenizer, prompt)
  tokens, lengths = decode.pad_prompts([ids], limit=cfg.length - new_tokens, pad=tokenizer.pad)
  stops = stops_of(tokenizer, stop)
  prefill = jax.jit(decode.prefill, static_argnums=0, static_argnames='stop_width', donate_argnums=4)
  one = jax.jit(decode.decode_one, static_argnums=0, donate_argnums=2)
  cache = allocate(cfg, 1, cfg.length)
  state = prefill(cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), cache, stop_width=stops.shape[1])
  text = tokenizer.stream()
  text.feed(ids)
  for _ in range(new_tokens):
    state, (token, *_) = one(cfg, params, state, decode.row_keys([seed]), Sampling.of(1, cfg.vocab, **how), stops)
    yield text.feed(int(token[0]))
    if bool(state.done[0]):
      break
  yield text.end()


def run(config, workdir):
  """Prints completions of config.prompt, or answers lines of standard input until it ends."""
  mesh = sharding.make_mesh(**config.mesh)
  cfg, params, tokenizer, step = load(workdir, config.step, mesh)
  if config.new_tokens < 1 or config.samples < 1:
    raise BadInput(f'new_tokens = {config.new_tokens} and samples = {config.samples} must be at least 1')
  how = dict(
    temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p,
    new_tokens=config.new_tokens, stop=tuple(config.stop),
  )  # fmt: skip
  if not config.interactive:
    texts = complete(
      cfg, params, tokenizer, [config.prompt] * config.samples, mesh=mesh,
      seeds=range(config.seed, config.seed + config.samples), **how,
    )  # fmt: skip
    for text in texts:
      print(config.prompt + text.text, end='\n\n' if config.samples > 1 else '\n')
    return
  shown = sys.stdin.isatty()
  print(f'step {step} of {workdir}; an empty line or end of input leaves', file=sys.stderr)
  with jax.set_mesh(mesh):
    for turn in range(sys.maxsize):
      if shown:
        print('> ', end='', flush=True)
      prompt = sys.stdin.readline().rstrip('\n')
      if not prompt:
        return
      try:
        for piece in stream(cfg, params, tokenizer, prompt, seed=config.seed + turn, **how):
          print(piece, end='', flush=True)
        print()
      except BadInput as e:  # one bad prompt does not end the conversation
        print(f'error: {e}', file=sys.stderr)
