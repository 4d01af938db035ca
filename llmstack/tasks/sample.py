"""Text from a checkpoint: completions of a prompt, or a prompt line that streams."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from llmstack import errors, sharding
from llmstack.data import chat
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.model import allocate, ready
from llmstack.tasks import start


class Text(NamedTuple):
  text: str  # the completion, without the prompt and without the stop string
  tokens: np.ndarray  # int32[n] sampled, EOS and stop included
  logp: np.ndarray  # float32[n] under the model
  done: bool  # false where new_tokens ended it


def room(cfg, prompts, new_tokens):
  """Returns (longest prompt allowed, new tokens): None for new_tokens fills model.length after the longest prompt."""
  if new_tokens is None:
    new_tokens = max(cfg.length - max(map(len, prompts)), 1)
  return cfg.length - new_tokens, new_tokens


def cut(text, stop):
  """Returns (text up to the first stop string, whether there was one)."""
  ends = [at for at in (text.find(s) for s in stop) if at >= 0]
  return (text[: min(ends)], True) if ends else (text, False)


def seed_range(seed, n):
  """Returns n seeds from `seed` on. Raises: BadInput outside uint32."""
  if not 0 <= seed <= 2**32 - n:
    raise BadInput(f'seed = {seed} must be between 0 and {2**32 - n}')
  return range(seed, seed + n)


def complete_ids(
  cfg, params, tokenizer, prompts, *, mesh, new_tokens, seeds, eos=None, stop=(), multiple=16, **how
):  # fmt: skip
  """Returns a Text per prompt.

  prompts: [ids]. new_tokens: at most so many, or None.
  seeds: int per prompt; each draws alone what it draws in a batch.
  eos: ids that end a completion and are no part of its text; None = the tokenizer's EOS.
  stop: strings; found in the text, because a tokenizer spells a string differently from place to place.
  multiple: widths of prompts are rounded up to it; each width is compiled. how: temperature, top_k, top_p, min_p.
  Raises: BadInput for a prompt that leaves no room for new_tokens in model.length.
  """
  if not len(prompts):
    return []
  prompts, eos = [list(p) for p in prompts], endings(tokenizer, eos)
  extra = -len(prompts) % (mesh.shape['data'] * mesh.shape['fsdp'])  # rows that fill the last device; dropped below
  limit, new_tokens = room(cfg, prompts, new_tokens)
  tokens, lengths = decode.pad_prompts(prompts + prompts[:1] * extra, limit=limit, pad=tokenizer.pad, multiple=multiple)
  with jax.set_mesh(mesh):
    out = decode.generate(
      cfg, params, tokens, lengths, decode.row_keys([*seeds] + [0] * extra),
      Sampling.of(len(tokens), cfg.vocab, **how), decode.stop_table([[i] for i in eos]), new_tokens=new_tokens,
      pad=tokenizer.pad,
    )  # fmt: skip
  out = multihost_utils.process_allgather(out, tiled=True)
  texts = []
  for i, ids in enumerate(prompts):
    sampled = out.tokens[i][out.sampled[i]]
    said = sampled.tolist()
    said = said[:-1] if said and said[-1] in eos else said
    # Decoded together with the prompt: a leading space belongs to the completion.
    text, stopped = cut(tokenizer.decode([*ids, *said])[len(tokenizer.decode(ids)) :], stop)
    texts.append(Text(text, sampled, out.logp[i][out.sampled[i]], bool(out.done[i]) or stopped))
  return texts


def complete(cfg, params, tokenizer, prompts, **how):
  """Returns a Text per prompt, a str, which is continued. how: as in complete_ids."""
  return complete_ids(cfg, params, tokenizer, [tokenizer.prompt(p) for p in prompts], **how)


def endings(tokenizer, eos):
  """Returns the ids that end a completion. eos: None takes the tokenizer's EOS, if it has one."""
  return ([] if tokenizer.eos is None else [tokenizer.eos]) if eos is None else list(eos)


def stream(cfg, params, tokenizer, ids, *, new_tokens, seed, eos=None, stop=(), **how):
  """Yields the completion of one prompt piece by piece, as soon as each character is whole.

  ids: of the prompt; the rest as in complete_ids. What could still become a stop string is held back.
  """
  limit, new_tokens = room(cfg, [ids], new_tokens)
  tokens, lengths = decode.pad_prompts([ids], limit=limit, pad=tokenizer.pad)
  eos = endings(tokenizer, eos)
  stops = decode.stop_table([[i] for i in eos])
  prefill = jax.jit(decode.prefill, static_argnums=0, donate_argnums=4)
  one = jax.jit(decode.decode_one, static_argnums=0, donate_argnums=2)
  keys, sampling = decode.row_keys([seed]), Sampling.of(1, cfg.vocab, **how)
  state = prefill(cfg, params, jnp.asarray(tokens), jnp.asarray(lengths), allocate(cfg, 1, cfg.length))
  text = tokenizer.stream()
  text.feed(ids)
  held, hold = '', max(map(len, stop), default=1) - 1
  for _ in range(new_tokens):
    state, (token, *_) = one(cfg, params, state, keys, sampling, stops)
    if int(token[0]) in eos:
      break
    held, stopped = cut(held + text.feed(int(token[0])), stop)
    if stopped:
      yield held
      return
    ready = max(len(held) - hold, 0)
    yield held[:ready]
    held = held[ready:]
  yield cut(held + text.end(), stop)[0]


def load(workdir, step, mesh, rows):
  """Returns (cfg, params, tokenizer, step) of a checkpoint, laid out on the mesh to decode `rows` at once."""
  model = start.Trained(workdir, step)
  if model.kind != 'lm':
    raise BadInput(f'{model.where} is a {model.kind} model, which says nothing: give the workdir of a language model')
  params = jax.jit(ready, static_argnums=(0, 2))(model.cfg, model.params(mesh), rows)
  return model.cfg, params, model.tokenizer, model.step


def run(config, workdir):
  """Prints completions of config.prompt, or answers lines of standard input until it ends.

  With config.chat the prompt is a user's message, and the lines are a conversation.
  """
  errors.at_least(config, 1, 'new_tokens', 'samples')
  seeds = seed_range(config.seed, config.samples)
  stop = (config.stop,) if isinstance(config.stop, str) else tuple(config.stop)
  if '' in stop:
    raise BadInput('stop has an empty string, which ends every completion at once: leave it out')
  if config.interactive and jax.process_count() > 1:
    raise BadInput('interactive = True reads one standard input: leave out --processes')
  mesh = sharding.make_mesh(**config.mesh)
  cfg, params, tokenizer, step = load(workdir, config.step, mesh, 1 if config.interactive else config.samples)
  template = template_for(config.chat, tokenizer)
  how = dict(
    temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p,
    new_tokens=config.new_tokens, stop=stop, eos=template and template.stops,
  )  # fmt: skip
  if not config.interactive:
    ids = template.prompt(asked(config.prompt)) if template else tokenizer.prompt(config.prompt)
    texts = complete_ids(cfg, params, tokenizer, [ids] * config.samples, mesh=mesh, seeds=seeds, **how)
    for text in texts if not jax.process_index() else ():
      print(('' if template else config.prompt) + text.text, end='\n\n' if config.samples > 1 else '\n')
    return
  start.say(f'step {step} of {workdir}; an empty line or end of input leaves')
  messages = []
  with jax.set_mesh(mesh):
    for turn in range(sys.maxsize):
      if sys.stdin.isatty():
        print('> ', end='', flush=True)
      prompt = sys.stdin.readline().rstrip('\n')
      if not prompt:
        return
      try:
        ids, said = tokenizer.prompt(prompt), ''
        if template:
          now, ids = fitting(template, messages + asked(prompt), cfg.length - (config.new_tokens or 1))
        for piece in stream(cfg, params, tokenizer, ids, seed=(config.seed + turn) % 2**32, **how):
          print(piece, end='', flush=True)
          said += piece
        print()
        if template and said.strip():  # no template has room for an answer of nothing
          messages = [*now, {'role': 'assistant', 'content': said}]
      except BadInput as e:  # one bad prompt does not end the conversation
        start.say(f'error: {e}')


def template_for(name, tokenizer):
  """Returns the chat template of that name or file, None for None."""
  return None if name is None else chat.template(name, tokenizer)


def asked(text):
  """Returns the conversation that a prompt begins."""
  return [{'role': 'user', 'content': text}]


def fitting(template, messages, limit):
  """Returns (messages, ids of their prompt), the oldest exchanges left out, and said so, until the ids fit `limit`."""
  ids, gone = template.prompt(messages), 0
  while len(ids) > limit and len(messages) > 2:
    messages, gone = messages[2:], gone + 1
    ids = template.prompt(messages)
  if gone:
    start.say(f'the conversation is longer than the model reads: its first {gone} exchanges are left out')
  return messages, ids
