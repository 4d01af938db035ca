"""What a trained model scores, as numbers with their intervals: text, multiple choice, answers, wins over another."""

import functools
import gzip
import json
import lzma
import os
import re
import time

import numpy as np
import zstandard

from llmstack import errors, sharding
from llmstack.data import questions, sources
from llmstack.errors import BadInput
from llmstack.infer.score import score
from llmstack.metrics import wilson, win_rate
from llmstack.model import parameters
from llmstack.tasks import reward, start
from llmstack.tasks.sample import asked, complete_ids, load, template_for

COMPRESSORS = {
  'gzip -9': functools.partial(gzip.compress, compresslevel=9, mtime=0),
  'zstd -19': lambda data: zstandard.ZstdCompressor(level=19).compress(data),
  'xz -9': functools.partial(lzma.compress, preset=9),
}


class Model:
  """A model and how it scores: log-likelihoods, counted."""

  def __init__(self, cfg, params, tokenizer, step=0, *, mesh, batch, workdir='', template=None):
    self.cfg, self.params, self.tokenizer, self.step, self.template = cfg, params, tokenizer, step, template
    self.mesh, self.batch, self.workdir = mesh, batch, workdir
    self.tokens = self.seconds = 0

  @classmethod
  def of(cls, workdir, step, mesh, batch):
    template = start.Trained(workdir, step).template
    return cls(*load(workdir, step, mesh, batch), mesh=mesh, batch=batch, workdir=workdir, template=template)

  def head(self):
    """Returns the ids that every sequence begins with: BOS, or where there is none EOS, as GPT-2 was trained."""
    head = self.tokenizer.prompt('') or [i for i in [self.tokenizer.eos] if i is not None]
    if not head:
      raise BadInput(f'the tokenizer of {self.workdir} has neither BOS nor EOS, and nothing predicts a first token')
    return head

  def pair(self, context, continuation):
    """Returns (ids, start of the continuation, whether a token would have crossed the boundary).

    The harness encodes both together and splits at the length of the encoded context. Where a token spans the
    boundary, that scores another text than the continuation: here both are then encoded alone.
    """
    before = self.tokenizer.encode(context).tolist() if context else []
    whole = self.tokenizer.encode(context + continuation).tolist()
    merged = whole[: len(before)] != before or len(whole) == len(before)
    if merged:
      whole = before + self.tokenizer.encode_plain(continuation).tolist()
    head = self.head()
    return head + whole, len(head) + len(before), merged

  def score(self, items, **how):
    """Returns [Scored] of [(ids, start)]. Raises: BadInput where parameters are damaged, which makes NaN."""
    begun = time.perf_counter()
    out = score(self.cfg, self.params, items, mesh=self.mesh, batch=self.batch, **how)
    self.seconds += time.perf_counter() - begun
    self.tokens += sum(len(s.logp) for s in out)
    if bad := sum(not np.isfinite(s.logp).all() for s in out):
      raise BadInput(
        f'step {self.step} of {self.workdir}: {bad} of {len(out)} scores are not finite: take another step'
      )
    return out


def held_out(source, megabytes):
  """Returns the texts of a source: what it holds out, or all where it holds out nothing, up to so many MB."""
  split, out, left = 'eval' if source.holdout else 'train', [], int(megabytes * 1e6)
  for document in sources.documents(source):
    if text := sources.part(document.text, source, split).encode()[:left].decode(errors='ignore'):
      out.append(text)
      left -= len(text.encode())
    if left < 4:  # bytes of a character
      break
  if not out:
    raise BadInput(
      f'{", ".join(source.files)} holds out nothing with holdout = {source.holdout}: raise it, 0 takes all'
    )
  return out


def bits(model, texts, *, window, stride):
  """Returns what predicting the texts costs, one by one, beside what compressors make of all of them in one piece.

  Bits are those of the text's tokens, given BOS: the ends of documents cost neither side anything. with_model adds
  the parameters as the checkpoint has them, 4 bytes each, and the tokenizer, once; compressors are taken as free.
  """
  data = ''.join(texts).encode()
  head, tokenizer = model.head(), model.tokenizer
  encoded = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
  lossy = sum(tokenizer.decode(ids) != text for ids, text in zip(encoded, texts))
  items = [(head + ids, len(head)) for ids in encoded]
  logp = np.concatenate([s.logp for s in model.score(items, window=window, stride=stride)]).astype(np.float64)
  nats, size = -logp.sum(), parameters(model.cfg)[0] * 4 + len(tokenizer.proto)
  per_byte = nats / np.log(2) / len(data)
  return {
    'documents': len(texts), 'bytes': len(data), 'tokens': len(logp), 'lossy': lossy, 'window': window,
    'stride': stride, 'nats_per_token': nats / len(logp), 'perplexity': float(np.exp(nats / len(logp))),
    'bits_per_byte': per_byte, 'model_bytes': size, 'bits_per_byte_with_model': per_byte + 8 * size / len(data),
    'compressors': {name: 8 * len(f(data)) / len(data) for name, f in COMPRESSORS.items()},
  }  # fmt: skip


def right(scores, gold):
  """Returns the share of a point for choosing the best score: 1 of k where k are equally good, gold among them."""
  best = scores == scores.max()
  return float(best[gold] / best.sum())


def choose(model, items):
  """Returns counts of right answers by the largest sum, mean per byte and mean per token, or of exact continuations.

  items: [Question]. A question longer than the model's window loses the beginning of its context, and is counted.
  """
  pairs = [model.pair(*pair) for item in items for pair in item.pairs]
  scored = model.score([(ids, start) for ids, start, _ in pairs])
  sums = np.array([s.logp.sum(dtype=np.float64) for s in scored])
  cut, at = 0, 0
  table = {k: 0.0 for k in (('exact',) if len(items[0].pairs) == 1 else ('acc', 'acc_norm', 'acc_token'))}
  for item in items:
    own = slice(at, at := at + len(item.pairs))
    cut += any(len(ids) > model.cfg.length + 1 for ids, _, _ in pairs[own])
    if 'exact' in table:
      table['exact'] += bool((scored[own.start].rank == 0).all())
    else:
      table['acc'] += right(sums[own], item.gold)
      table['acc_norm'] += right(sums[own] / item.sizes, item.gold)
      table['acc_token'] += right(sums[own] / [len(s.logp) for s in scored[own]], item.gold)
  out = {'questions': len(items), 'cut': cut, 'merged': sum(m for _, _, m in pairs), **table}
  if 'exact' in table:
    return out | {'perplexity': float(np.exp(-sums.mean()))}  # per continuation, as the harness has it
  return out | {'chance': float(np.mean([1 / len(item.pairs) for item in items]))}


def extract(text, how):
  """Returns the answer in a text, '' for none: its first line, its last number, or a pattern's first group."""
  if how == 'first_line':
    return text.strip().split('\n')[0].strip()
  if how == 'number':
    found = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
    if not found:
      return ''
    number = found[-1].replace(',', '')
    return re.sub(r'\.?0*$', '', number) if '.' in number else number
  found = re.search(how, text)
  return '' if found is None else (found[1] if found.re.groups else found[0]).strip()


def answers(model, prompts, *, new_tokens, temperature, seed, template):
  """Returns [text or None] by generation, None for a prompt that leaves no room for new_tokens in the model."""
  tokenizer = model.tokenizer
  ids = [template.prompt(asked(p)) if template else tokenizer.prompt(p) for p in prompts]
  fit = sorted((i for i in range(len(ids)) if len(ids[i]) + new_tokens <= model.cfg.length), key=lambda i: len(ids[i]))
  out = [None] * len(ids)
  for i in range(0, len(fit), model.batch):
    group = fit[i : i + model.batch]
    filled = group + group[:1] * (model.batch - len(group))  # one number of rows, which is compiled once
    texts = complete_ids(
      model.cfg, model.params, tokenizer, [ids[j] for j in filled], mesh=model.mesh, new_tokens=new_tokens,
      seeds=[(seed + j) % 2**32 for j in filled], eos=template and template.stops, multiple=64, temperature=temperature,
    )  # fmt: skip
    for j, text in zip(group, texts):
      out[j] = text.text
  return out


def match(items, how):
  """Returns (prompts, completions) -> float[n]: 1.0 where the answer in a completion is the one in the file."""
  known = {}
  for item in items:
    if known.setdefault(item.prompt, answer := extract(item.answer, how)) != answer:
      raise BadInput(f'{item.where} asks what another line asks, with another answer: leave one of them out')
  return lambda prompts, completions: np.array(
    [float(known[p] != '' and extract(c, how) == known[p]) for p, c in zip(prompts, completions)]
  )


def scorer_for(config, items, how, mesh):
  """Returns (prompts, completions) -> float[n], by which a prompt is won: exact matches, or a reward model."""
  if config.prompts.scorer == 'match':
    return match(items, how)
  if not os.path.isdir(config.prompts.scorer):
    raise BadInput(f'prompts.scorer = {config.prompts.scorer!r}: give match, or the workdir of a reward model')
  return reward.Scorer(config.prompts.scorer, mesh, config.batch)


def check(config):
  """Returns nothing; raises BadInput for settings that cannot be, before anything is loaded."""
  errors.at_least(config, 1, 'batch', 'limit', 'text.window', 'text.stride')
  if not config.text.megabytes > 0 or config.prompts.temperature < 0:
    raise BadInput(f'text.megabytes = {config.text.megabytes} must be positive, prompts.temperature at least 0')
  if not any(len(c.sources) for c in (config.text, config.questions, config.prompts)):
    raise BadInput('there is nothing to evaluate: name files in text.sources, questions.sources or prompts.sources')
  for name, c in config.prompts.sources.items():
    errors.at_least(c, 1, 'new_tokens')
    try:
      re.compile(c.extract)
    except re.error as e:
      raise BadInput(f'prompts.sources.{name}.extract = {c.extract!r} is no regular expression ({e})') from None


def run(config, workdir):
  """Prints a table of what was measured and writes it to evaluation.json."""
  check(config)
  as_files = lambda c: (c.files,) if isinstance(c.files, str) else tuple(c.files)  # noqa: E731
  texts = {
    name: held_out(sources.Source(as_files(c), c.field, c.split_on, c.holdout, c.holdout_by), config.text.megabytes)
    for name, c in config.text.sources.items()
  }
  chosen = {
    name: questions.questions(as_files(c), join=c.join, limit=config.limit)
    for name, c in config.questions.sources.items()
  }
  prompted = {name: questions.asked(as_files(c), limit=config.limit) for name, c in config.prompts.sources.items()}
  mesh = sharding.make_mesh(**config.mesh)
  for name, items in prompted.items():
    scorer_for(config, items, config.prompts.sources[name].extract, mesh)
  model = Model.of(workdir, config.step, mesh, config.batch)
  other = prompted and config.prompts.against and Model.of(config.prompts.against, None, mesh, config.batch)
  window = model.cfg.length if config.text.window is None else config.text.window
  stride = max(window // 2, 1) if config.text.stride is None else config.text.stride
  if not stride <= window <= model.cfg.length:
    raise BadInput(f'text.stride = {stride}, text.window = {window}: use stride <= window <= {model.cfg.length}')
  out = {'step': model.step, 'text': {}, 'questions': {}, 'prompts': {}}
  start.say(f'step {model.step} of {workdir}, {parameters(model.cfg)[0]:,} parameters')

  for name, docs in texts.items():
    out['text'][name] = found = bits(model, docs, window=window, stride=stride)
    show_text(name, found)
  if chosen:
    print(f'{"multiple choice":24}{"questions":>10}  score         value   95 % interval      chance')
  for name, (items, _) in chosen.items():
    out['questions'][name] = found = choose(model, items)
    show_choices(name, found)
  if prompted:
    print(f'{"answers by generation":24}{"prompts":>10}  score         value   95 % interval')
    for name, items in prompted.items():
      out['prompts'][name] = found = ask(config, model, other, name, items)
      show_answers(name, found)
  if model.tokens:
    rate = model.tokens / model.seconds
    out |= {'tokens_scored': model.tokens, 'tokens_per_s': rate}
    print(f'\n{model.tokens:,} tokens scored, {rate:,.0f} per second with compiling')
  path = os.path.join(workdir, 'evaluation.json')
  with open(f'{path}.new', 'w') as f:
    json.dump(out, f, indent=2)
  os.replace(f'{path}.new', path)
  print(path)


def ask(config, model, other, name, items):
  """Returns how many answers were right, and where another model is given how often this one beats it."""
  c = config.prompts.sources[name]
  prompts = [item.prompt for item in items]
  exact, scorer, completions, late = match(items, c.extract), scorer_for(config, items, c.extract, model.mesh), {}, {}
  for key, m in (('own', model), ('other', other)) if other else (('own', model),):
    template = template_for(config.prompts.chat, m.tokenizer)
    said = answers(
      m, prompts, new_tokens=c.new_tokens, temperature=config.prompts.temperature, seed=config.seed, template=template
    )
    late[key] = sum(text is None for text in said)
    completions[key] = [text or '' for text in said]
  out = {'prompts': len(items), 'exact': float(exact(prompts, completions['own']).sum()), 'too_long': late['own']}
  if other:
    rate, low, high = win_rate(*(scorer(prompts, completions[k]) for k in ('own', 'other')), config.seed)
    out |= {'against': other.workdir, 'against_step': other.step, 'against_too_long': late['other']}
    out |= {'win_rate': rate, 'win_rate_low': low, 'win_rate_high': high}
  return out


def show_text(name, r):
  counts = f'{r["documents"]:,} documents, {r["bytes"]:,} bytes, {r["tokens"]:,} tokens'
  print(f'{name}: {counts}; windows of {r["window"]} tokens, each scoring {r["stride"]}')
  if r['lossy']:
    print(f'  {r["lossy"]} documents have characters that the tokenizer does not know: their bits are too few')
  print(f'  {"nats per token":30}{r["nats_per_token"]:>9.4f}   perplexity {r["perplexity"]:.2f}')
  print(f'  {"bits per byte":30}{r["bits_per_byte"]:>9.4f}   without the model')
  size = f'with its {r["model_bytes"] / 1e6:,.1f} MB, once'
  print(f'  {"":30}{r["bits_per_byte_with_model"]:>9.4f}   {size}')
  for compressor, value in r['compressors'].items():
    print(f'  {compressor:30}{value:>9.4f}')
  print()


def show_choices(name, r):
  n = r['questions']
  for i, key in enumerate(k for k in ('acc', 'acc_norm', 'acc_token', 'exact') if k in r):
    low, high = wilson(r[key], n)
    interval = f'{low:.1%} to {high:.1%}'
    first = f'{name:24}{n:>10,}' if not i else ' ' * 34
    print(f'{first}  {key:10}{r[key] / n:>9.1%}   {interval:18}' + (f'{r["chance"]:>7.1%}' if 'chance' in r else ''))
  if 'perplexity' in r:
    print(f'{"":34}  {"perplexity":10}{r["perplexity"]:>9.4g}   of a continuation')
  notes = [f'{r["cut"]:,} questions are longer than the model reads, their contexts cut from the left'] * bool(r['cut'])
  notes += [f'{r["merged"]:,} continuations encoded alone, a token would cross into them'] * bool(r['merged'])
  for note in notes:
    print(f'{"":24}  {note}')


def show_answers(name, r):
  low, high = wilson(r['exact'], r['prompts'])
  interval = f'{low:.1%} to {high:.1%}'
  print(f'{name:24}{r["prompts"]:>10,}  {"exact":10}{r["exact"] / r["prompts"]:>9.1%}   {interval}')
  if r['too_long']:
    print(f'{"":24}  {r["too_long"]:,} prompts leave no room for the answer and count as wrong')
  if 'win_rate' in r:
    interval = f'{r["win_rate_low"]:.1%} to {r["win_rate_high"]:.1%}'
    print(f'{"":34}  {"win rate":10}{r["win_rate"]:>9.1%}   {interval:18} against {r["against"]}, ties half')
