"""Judges that need an engine or a network, as llmstack/align/judge.py asks them, and what a config makes of them."""

import collections
import concurrent.futures
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request

import jax
import numpy as np

from llmstack.align import judge as asking
from llmstack.data import chat
from llmstack.errors import BadInput
from llmstack.infer.score import score
from llmstack.model import ready
from llmstack.rewards import Failed
from llmstack.tasks import start
from llmstack.tasks.reward import Scorer
from llmstack.tasks.sample import complete_ids

LARGEST = 4 << 20  # bytes of an answer that are read
RETRIED = (408, 429)  # statuses beside 5xx that another attempt may mend
REFUSED = (401, 403, 404)  # that none will, for no row
TOP = 20  # labels that an endpoint's distribution may hold, the most that is common


class Local:
  """A checkpoint of ours as a judge.

  failed: Counter of rows without an answer, by reason.
  """

  def __init__(self, workdir, mesh, *, batch, step=None, new_tokens=128):
    model = start.Trained(workdir, step)
    if model.kind != 'lm':
      raise BadInput(f'{model.where} is a {model.kind} model, which says nothing: choose judge.kind = {model.kind!r}')
    if model.template is None:
      raise BadInput(f'{model.where} has no chat template, and a judge is asked in a chat: tune it with configs/sft.py')
    self.cfg, self.tokenizer, self.mesh, self.batch = model.cfg, model.tokenizer, mesh, batch
    self.template, self.new_tokens = chat.template(model.template, model.tokenizer), new_tokens
    self.params = jax.jit(ready, static_argnums=(0, 2))(model.cfg, model.params(mesh), batch)
    self.failed = collections.Counter()

  def choose(self, conversations, labels):
    """Returns float32[n,L]: the log-prob of each label as what the assistant begins with, and with no longer label."""
    ids = [self._ids(label) for label in labels]
    if len(set(map(tuple, ids))) < len(ids):
      raise BadInput(f'the tokenizer cannot tell the labels {labels!r} apart: give other ones')
    out = np.full((len(conversations), len(labels)), np.nan, np.float32)
    prompts = self._prompts(conversations, max(map(len, ids)))
    items = [([*prompt, *label], len(prompt)) for prompt in prompts if prompt for label in ids]
    if items:
      found = score(self.cfg, self.params, items, mesh=self.mesh, batch=self.batch)
      logp = np.array([x.logp.sum(dtype=np.float64) for x in found]).reshape(-1, len(labels))
      out[[bool(prompt) for prompt in prompts]] = asking.disjoint(logp, ids)
    return out

  def say(self, conversations, *, temperature=0.0, seeds=None):
    """Returns [text], None where a conversation does not fit. seeds: int per conversation."""
    seeds, prompts = (
      range(len(conversations)) if seeds is None else seeds,
      self._prompts(conversations, self.new_tokens),
    )
    out, at = [None] * len(prompts), [i for i, prompt in enumerate(prompts) if prompt]
    for first in range(0, len(at), self.batch):
      group = at[first : first + self.batch]
      filled = group + group[:1] * (self.batch - len(group))  # one shape
      texts = complete_ids(
        self.cfg, self.params, self.tokenizer, [prompts[i] for i in filled], mesh=self.mesh, multiple=64,
        new_tokens=self.new_tokens, seeds=[seeds[i] for i in filled], eos=self.template.stops, temperature=temperature,
      )  # fmt: skip
      for i, text in zip(group, texts):
        out[i] = text.text
    return out

  def _ids(self, label):
    """Returns the ids with which an answer begins that is the label."""
    asked = [{'role': 'user', 'content': '?'}]
    said = self.template.encode([*asked, {'role': 'assistant', 'content': label}]).ids.tolist()
    said = said[len(self.template.prompt(asked)) :]
    return said[: next((i for i, x in enumerate(said) if x in self.template.stops), len(said))]

  def _prompts(self, conversations, room):
    """Returns the ids of each, None for one that does not leave so much room, which is counted."""
    prompts = [self.template.prompt(messages) for messages in conversations]
    fit = [prompt if len(prompt) + room <= self.cfg.length else None for prompt in prompts]
    self.failed['longer than the judge reads'] += sum(x is None for x in fit)
    return fit


class _Stay(urllib.request.HTTPRedirectHandler):
  def redirect_request(self, *_):
    return None  # a redirected request would take the key along to another host


class Endpoint:
  """An OpenAI-compatible endpoint as a judge: POST base_url/chat/completions.

  base_url: such as 'http://localhost:8000/v1'. model: its name there.
  key: name of the environment variable that holds the key, None for none. It is sent, and nowhere written.
  timeout: seconds for one request. retries: attempts after the first, where the answer is 408, 429 or 5xx, or none;
    before each one `backoff` seconds, twice as many each time, or what the endpoint asks for, at most 60.
  top_logprobs: how many it gives, at most; 0 = none, and the verdict is read from the text.
  at_once: requests under way. failed: Counter of rows without an answer, by reason.
  """

  def __init__(
    self, base_url, model, *, key=None, timeout=60.0, retries=4, backoff=1.0, top_logprobs=TOP, at_once=8,
    new_tokens=256,
  ):  # fmt: skip
    parts = urllib.parse.urlsplit(base_url or '')
    if parts.scheme not in ('http', 'https') or not parts.hostname or parts.username or parts.query:
      raise BadInput('judge.base_url must be like http://localhost:8000/v1, without a name, a password or a query')
    if not model:
      raise BadInput('judge.model is empty: give the name that the endpoint has for the model')
    secret = (os.environ.get(key) or '').strip() if key else None
    if key and not (secret and secret.isascii() and secret.isprintable()):
      # Not said which: who puts the key itself there would read it in a log.
      raise BadInput('judge.key is not the name of an environment variable that holds a key: export it, give its name')
    if timeout <= 0 or retries < 0 or backoff < 0 or at_once < 1 or not 0 <= top_logprobs <= TOP:
      raise BadInput(
        f'judge: timeout = {timeout}, retries = {retries}, backoff = {backoff}, at_once = {at_once} and top_logprobs = '
        f'{top_logprobs} must be above 0, at least 0, at least 0, at least 1, and from 0 to {TOP}'
      )
    self.url, self.model, self._key = f'{base_url.rstrip("/")}/chat/completions', model, secret
    self.timeout, self.retries, self.backoff, self.new_tokens = timeout, retries, backoff, new_tokens
    self.top, self.at_once, self.failed = top_logprobs, at_once, collections.Counter()
    self._opener = urllib.request.build_opener(_Stay)

  def choose(self, conversations, labels):
    """Returns float32[n,L]: log-probs of the first token where they are given, else 0 for the label that is named."""
    more = {'max_tokens': 8, 'temperature': 0}
    if self.top:
      more |= {'logprobs': True, 'top_logprobs': self.top}
    out = np.full((len(conversations), len(labels)), np.nan, np.float32)
    for row, answer in zip(out, self._all(conversations, more)):
      if answer is not None:
        row[:] = verdict(answer, labels)
    return out

  def say(self, conversations, *, temperature=0.0, seeds=None):
    """Returns [text], None where there is no answer. seeds: int per conversation, for endpoints that take one."""
    how = {'max_tokens': self.new_tokens, 'temperature': temperature}
    answers = self._all(conversations, how, None if seeds is None else [{'seed': s} for s in seeds])
    return [None if answer is None else answer['message']['content'] for answer in answers]

  def _all(self, conversations, how, each=None):
    """Returns the choice of each answer, None where there is none."""
    bodies = [
      {'model': self.model, 'messages': list(messages)} | how | own
      for messages, own in zip(conversations, each or [{}] * len(conversations))
    ]
    with concurrent.futures.ThreadPoolExecutor(self.at_once) as pool:
      found = list(pool.map(self._one, bodies))
    self.failed.update(why for _, why in found if why)
    return [answer for answer, _ in found]

  def _one(self, body):
    """Returns (choice, None), or (None, the reason). Raises: BadInput where the endpoint refuses whoever asks."""
    headers = {'Content-Type': 'application/json'} | ({'Authorization': f'Bearer {self._key}'} if self._key else {})
    data, wait = json.dumps(body).encode(), self.backoff
    for attempt in range(self.retries + 1):
      asked_for = None
      try:
        with self._opener.open(urllib.request.Request(self.url, data, headers), timeout=self.timeout) as answer:
          return self._read(answer.read(LARGEST + 1))
      except urllib.error.HTTPError as e:
        e.close()
        why, asked_for = f'status {e.code}', e.headers.get('Retry-After')
        if e.code in REFUSED:
          raise BadInput(
            f'{self.url} answers with status {e.code}: correct judge.base_url, judge.model or the key, whose variable '
            'judge.key names'
          ) from None
        if e.code not in RETRIED and e.code < 500:
          return None, why
      except TimeoutError:
        why = f'no answer within {self.timeout:g} s'
      except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
        why = f'no connection: {type(getattr(e, "reason", e)).__name__}'
      if attempt < self.retries:
        time.sleep(min(float(asked_for) if (asked_for or '').isdecimal() else wait, 60.0))
        wait *= 2
    return None, why

  def _read(self, data):
    """Returns (choice, None) of an answer, or (None, the reason)."""
    if len(data) > LARGEST:
      return None, f'an answer of more than {LARGEST >> 20} MiB'
    try:
      choice = json.loads(data)['choices'][0]
      if not isinstance(choice['message']['content'], str):
        return None, 'an answer without text'
    except (ValueError, LookupError, TypeError, RecursionError):  # what is no JSON is a ValueError
      return None, 'no answer of a chat'
    return choice, None


def verdict(answer, labels):
  """Returns float64[L] of a choice of an endpoint: log-probs, -inf for what it does not give.

  Tokens that are a label, or one with spaces around, count. The text decides where there are no log-probs; and where it
  names a label that the first token only begins, as a tokenizer does that writes 10 digit by digit.
  """
  out, text = np.full(len(labels), -np.inf), answer['message']['content'].strip()
  named = asking.named(text, labels)
  try:
    first = answer['logprobs']['content'][0]
    token, given = str(first['token']).strip(), [(str(x['token']).strip(), x['logprob']) for x in first['top_logprobs']]
  except (LookupError, TypeError):
    token, given = '', []
  begun = named is not None and labels[named] != token and labels[named].startswith(token)
  if given and not begun:
    for token, logp in given:
      if token in labels and isinstance(logp, int | float) and logp == logp:
        out[labels.index(token)] = np.logaddexp(out[labels.index(token)], min(logp, 0.0))
  elif named is not None:
    out[named] = 0.0
  return out


def rewarding(scorer, failed):
  """Returns compare(prompts, a, b) -> Verdicts by a reward model: sigmoid(score of a - score of b), in no order.

  failed: Counter of pairs of which one reply is longer than the model reads.
  """
  encode = lambda prompt, text: scorer.template.encode([*prompt, {'role': 'assistant', 'content': text}]).ids  # noqa: E731

  def compare(prompts, a, b):
    ids = [(encode(prompt, x), encode(prompt, y)) for prompt, x, y in zip(prompts, a, b)]
    fit = [i for i, pair in enumerate(ids) if max(map(len, pair)) <= scorer.cfg.length]
    failed['longer than the judge reads'] += len(ids) - len(fit)
    p, mass = np.full((len(ids), 2), np.nan, np.float32), np.full((len(ids), 2), np.nan, np.float32)
    if fit:
      scores = scorer.of_ids([x for i in fit for x in ids[i]]).astype(np.float64).reshape(-1, 2)
      # A sigmoid that does not overflow.
      p[fit], mass[fit] = 0.5 * (1 + np.tanh((scores[:, :1] - scores[:, 1:]) / 2)), 1
    return asking.Verdicts(p[:, 0], p, mass)

  return compare


def speaker(c, mesh):
  """Returns the judge of a config's section that answers questions. Raises: BadInput for a kind that does not."""
  if c.kind == 'model':
    return Local(c.workdir, mesh, batch=c.batch, new_tokens=c.new_tokens)
  if c.kind == 'endpoint':
    how = {k: c[k] for k in ('timeout', 'retries', 'backoff', 'top_logprobs', 'at_once', 'new_tokens')}
    return Endpoint(c.base_url, c.model, key=c.key, **how)
  raise BadInput(f"judge.kind = {c.kind!r}: choose 'model' or 'endpoint', or 'reward' to compare two replies")


def comparer(c, mesh):
  """Returns (compare(prompts, a, b, principles) -> Verdicts, Counter of failures) of config.judge.

  principles: one per pair, or None for c.principle. A reward model reads none.
  """
  if c.kind == 'reward':
    failed = collections.Counter()
    by_score = rewarding(Scorer(c.workdir, mesh, c.batch), failed)
    return lambda prompts, a, b, principles: by_score(prompts, a, b), failed
  judge, text = speaker(c, mesh), asking.PAIR
  if c.template is not None:
    try:
      with open(c.template) as f:
        text = f.read().removesuffix('\n')
    except (OSError, UnicodeDecodeError) as e:
      raise BadInput(f'judge.template = {c.template} cannot be read: {e}') from None
  how = dict(template_text=text, labels=tuple(c.labels), floor=c.floor, thinking=c.thinking)
  asking.pairwise(judge, [], [], [], **how)  # whether labels and template will do, before anything is sampled

  def compare(prompts, a, b, principles):
    return asking.pairwise(judge, prompts, a, b, principle=c.principle if principles is None else principles, **how)

  return compare, judge.failed


def reward(mesh, judge, form='scalar', principle=asking.PRINCIPLE, questions=None, labels=None, floor=0.0):
  """Returns the reward, in -1..1, that a judge gives each completion by itself; a row without a verdict fails alone.

  judge: settings as configs/judge.py's judge(), of kind 'model' or 'endpoint'.
  form: 'scalar', the expected mark of `labels`, the least of which is worth -1 and the most 1 (2309.00267, section
    2.2.2); or 'rubric' of `questions`, {text: weight}. labels: None takes those of align/judge.py.
  """
  if form not in ('scalar', 'rubric') or (form == 'rubric') != bool(questions):
    raise BadInput(f"form = {form!r}, questions = {questions!r}: choose 'scalar', or 'rubric' with questions")
  how = {'principle': principle, 'floor': floor} | ({} if labels is None else {'labels': tuple(labels)})
  asked = speaker(judge, mesh)
  values = [float(x) for x in how.get('labels', asking.SCALE)] if form == 'scalar' else [-1.0, 1.0]
  low, high = min(values), max(values)

  def score_of(prompts, completions, info):
    if form == 'scalar':
      marks = asking.scalar(asked, prompts, completions, **how)
    else:
      marks = asking.rubric(asked, prompts, completions, questions, **how)
    scaled = (2 * marks.score.astype(np.float64) - low - high) / (high - low)
    return [
      float(x)
      if np.isfinite(x)
      else Failed(f'the judge names a label with probability {mass.min():.2g}; nan: no answer')
      for x, mass in zip(scaled, marks.mass)
    ]

  return score_of
