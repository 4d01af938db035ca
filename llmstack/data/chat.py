"""Messages -> token ids and which of them are trained on; and back.

A conversation is a list of {'role': 'system' | 'user' | 'assistant' | 'tool', 'content': str}. A template turns it into
pieces, each of which knows whether it is trained on, and the pieces are encoded one by one. So the mask comes from
lengths and never from a search for ids: it holds where padding is EOS (trl#1623, trl#2059), no token merges over the
end of the prompt (trl PR#2209), and a prompt is a prefix of its conversation.

Every conversation begins with exactly one BOS, where the tokenizer has one (alignment-handbook#127), and every
assistant turn ends in a token that is trained on (trl#931). Content is data: whatever it spells, it never becomes a
control token.
"""

import functools
import hashlib
import os
import re
from typing import NamedTuple

import numpy as np

from llmstack.data.sources import Bad, checked
from llmstack.data.tokenizer import CHAT_TOKENS
from llmstack.errors import BadInput

ROLES = ('system', 'user', 'assistant', 'tool')
TRAIN_ON = ('assistant', 'last', 'all')
SHOWN = [{'role': role, 'content': role} for role in ('system', 'user', 'assistant', 'user', 'assistant')]
FOLLOWS = {
  None: ('system', 'user'), 'system': ('user',), 'user': ('assistant',), 'assistant': ('user', 'tool'),
  'tool': ('assistant', 'tool'),
}  # fmt: skip


class Encoded(NamedTuple):
  """A conversation as tokens.

  ids: int32[n], the first is BOS where the tokenizer has one.
  mask: uint8[n], 1 where the token is a target to learn.
  """

  ids: np.ndarray
  mask: np.ndarray


class Piece(NamedTuple):
  """A part of a conversation's text.

  content: what somebody said, in which no symbol counts; False for markup, in which they do.
  turn: number of the assistant turn, from 0, that it belongs to; None for what is not trained on.
  """

  text: str
  content: bool
  turn: int | None = None


def check(messages, where='', prompt=False):
  """Returns the number of assistant turns. Raises Bad (a BadInput that is counted by kind) for what is no conversation.

  Turns: a system message or none; then user and assistant by turns, with tool messages between two of the assistant.
  where: names the record in the sentence.
  prompt: the last turn must be of user or tool instead of the assistant.
  """
  where = where and f'{where}: '
  if not isinstance(messages, list | tuple) or not messages:
    raise Bad('no messages', f'{where}messages is {messages!r:.80}: give a list of at least one message')
  before = None
  for i, message in enumerate(messages):
    here = f'{where}message {i}'
    if not isinstance(message, dict) or not {'role', 'content'} <= set(message):
      raise Bad('no messages', f"{here} is {message!r:.80}: write {{'role': ..., 'content': ...}}")
    role = message['role']
    if role not in ROLES:
      raise Bad('unknown role', f'{here} has role {role!r}: choose from {ROLES}')
    checked(message['content'], here, 'content')
    if role not in FOLLOWS[before]:
      after = f'follows {before}' if before else 'comes first'
      raise Bad(
        'does not alternate',
        f'{here} is of role {role} and {after}, where only {" or ".join(FOLLOWS[before])} may: merge or reorder turns',
      )
    if role == 'assistant' and not message['content'].strip():
      raise Bad('empty assistant turn', f'{here} is an assistant turn without text: fill it or drop the conversation')
    before = role
  if before != 'assistant' and not prompt:
    raise Bad('no reply', f'{where}the conversation ends with {before}, nothing to learn: end it with assistant')
  if before not in ('user', 'tool') and prompt:
    raise Bad('no prompt', f'{where}the prompt ends with {before}: end it with user or tool')
  return sum(m['role'] == 'assistant' for m in messages)


def template(name, tokenizer):
  """Returns a Template.

  name: 'llmstack', 'chatml', 'llama3' or 'gemma'; or the path of a tokenizer_config.json of Hugging Face, whose
    chat_template is used, or of a .jinja file.

  llmstack, of the chat tokens that `tokenizer.train` puts into every vocabulary, with no newline or space added:
    <s><|system|>Be brief.</s><|user|>2+2?</s><|assistant|>4</s>
  chatml (Qwen; a system prompt is not added):
    <|im_start|>user\\n2+2?<|im_end|>\\n<|im_start|>assistant\\n4<|im_end|>\\n
  llama3 (contents are stripped; tool is called ipython):
    <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n2+2?<|eot_id|> and so on
  gemma (contents are stripped; the system text goes before the first user's; no tool):
    <bos><start_of_turn>user\\n2+2?<end_of_turn>\\n<start_of_turn>model\\n4<end_of_turn>\\n

  A symbol that the tokenizer lacks is encoded as plain text and named in `Template.missing`. If it is the one that
  ends a turn, the tokenizer's EOS stands in for it, since a turn that ends in plain text never ends.

  Raises:
    BadInput: no such template; llmstack without its chat tokens; neither a symbol nor EOS to end a turn with.
  """
  if name in BUILT_IN:
    return Template(name, tokenizer)
  if not str(name).endswith(('.json', '.jinja')):
    raise BadInput(f'template is {name!r}: choose from {tuple(BUILT_IN)}, or the path of a .json or .jinja file')
  if not os.path.isfile(name):
    raise BadInput(f'{name} does not exist: give a tokenizer_config.json or a .jinja file')
  try:
    from llmstack.data.jinja import JinjaTemplate
  except ImportError:
    raise BadInput(f"{name} needs the package jinja2: pip install 'llmstack[hf]'") from None

  return JinjaTemplate(str(name), tokenizer)


class Template:
  """How a conversation is written for one tokenizer.

  missing: tuple of the template's symbols that the tokenizer lacks.
  stops: list of ids that end a turn: the template's, then EOS.
  fingerprint: hex that changes with the template or the tokenizer.
  """

  def __init__(self, name, tokenizer):
    self._write, specials, end = BUILT_IN[name]
    # Known by what it writes: of a changed template other rows are made, whatever it is called.
    self._setup(name, tokenizer, f'{end}{list(self._write(SHOWN, True))}', {})
    self._end(end, specials)
    if name == 'llmstack' and self.missing:
      raise BadInput(
        f'the tokenizer has no piece {self.missing[0]!r}, which the template llmstack needs: train the tokenizer with '
        'llmstack, or choose chatml, llama3 or gemma'
      )
    self._known = {}  # ids of markup, of which there is little

  def _setup(self, name, tokenizer, source, aliases):
    """Sets all but what ends a turn. `aliases`: {text: id}, names of BOS and EOS that the tokenizer does not know."""
    self.name, self.tokenizer = name, tokenizer
    self.symbols = aliases | tokenizer.symbols
    told = f'{source}\0{tokenizer.fingerprint}\0{sorted(aliases.items())}'
    self.fingerprint = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

  def _end(self, end, specials):
    """Sets what ends a turn, and what of the template's symbols is missing."""
    eos = self.tokenizer.eos
    self.missing = tuple(s for s in dict.fromkeys([*specials, end]) if s not in self.symbols)
    if end not in self.symbols and eos is None:
      raise BadInput(f'the tokenizer has neither {end!r}, which ends a turn of template {self.name}, nor an EOS')
    self._ending = end
    self.symbols.setdefault(end, eos)
    self.stops = list(dict.fromkeys(i for i in (self.symbols[end], eos) if i is not None))
    longest = sorted(map(re.escape, self.symbols), key=len, reverse=True)
    self._find = re.compile(f'({"|".join(longest)})')

  def encode(self, messages, train_on='assistant', after=0):
    """Returns Encoded(ids int32[n], mask uint8[n]); the mask is 1 on what the assistant says and on what ends its turn.

    train_on: 'assistant' = all its turns; 'last' = its last turn; 'all' = every token but BOS, whatever `after`.
    after: the assistant's turns among this many first messages are context: len(prompt) for prompt + completion.

    Raises:
      BadInput: not a conversation that ends with the assistant (see `check`), or nothing to train on.
    """
    if train_on not in TRAIN_ON:
      raise BadInput(f'train_on = {train_on!r}: choose from {TRAIN_ON}')
    turns = check(messages)
    first = turns - 1 if train_on == 'last' else sum(m['role'] == 'assistant' for m in messages[:after])
    if first >= turns:
      raise BadInput(f'after = {after} leaves no assistant turn of {len(messages)} messages to train on')
    parts, masks = self._start(), [np.zeros(self._bos, np.uint8)]
    for piece in self._pieces(messages, False, train_on != 'all'):
      ids = self._ids(piece)
      learn = train_on == 'all' or piece.turn is not None and piece.turn >= first
      parts.append(ids)
      masks.append(np.full(len(ids), learn, np.uint8))
    return Encoded(np.concatenate(parts), np.concatenate(masks))

  def prompt(self, messages):
    """Returns a list of ids to generate from: the conversation and the header of the assistant's turn.

    It is a prefix of encode([*messages, reply]).ids (where `encode` refuses a Jinja template, it may not be).

    Raises:
      BadInput: not a conversation that ends with user or tool.
    """
    check(messages, prompt=True)
    parts = self._start() + [self._ids(piece) for piece in self._pieces(messages, True, False)]
    return np.concatenate(parts).tolist()

  def reply(self, ids):
    """Returns str: the text of a completion up to the first stop, without it."""
    ids = np.asarray(ids, np.int64)
    stop = np.flatnonzero(np.isin(ids, self.stops))
    return self.tokenizer.decode_plain(ids[: stop[0]] if len(stop) else ids)

  @property
  def _bos(self):
    return int(self.tokenizer.bos is not None)

  def _start(self):
    return [np.full(self._bos, self.tokenizer.bos or 0, np.int32)]

  def _pieces(self, messages, header, marked):
    """Yields Piece; `header`: the assistant's next comes last. Unless `marked`, what is trained on may be unknown."""
    del marked  # known here in any case
    return self._write(messages, header)

  def _ids(self, piece):
    if piece.content:
      return self.tokenizer.encode_plain(piece.text)
    if (ids := self._known.get(piece.text)) is None:
      ids = self._known[piece.text] = self._markup(piece.text)
    return ids

  def _markup(self, text, hidden=''):
    """Returns int32[n] ids of text in which symbols count, without the character that hides some."""
    parts = self._find.split(text)
    ids = [self.tokenizer.encode_plain(part.replace(hidden, '') if hidden else part) for part in parts]
    ids[1::2] = [np.array([self.symbols[part]], np.int32) for part in parts[1::2]]
    return np.concatenate(ids)


def _written(messages, header, *, opening, end, gap, names, strip):
  """Yields Piece of `opening` (with the role's name), the content, `end` and `gap` for each message."""
  turn = -1
  for message in messages:
    role, content = message['role'], message['content']
    mine = role == 'assistant'
    turn += mine
    if role not in names:
      raise Bad('unknown role', f'the template has no role {role!r}, only {tuple(names)}: choose another template')
    yield Piece(opening.format(names[role]), False)
    yield Piece(content.strip() if strip else content, True, turn if mine else None)
    yield Piece(end, False, turn if mine else None)
    if gap:
      yield Piece(gap, False)
  if header:
    yield Piece(opening.format(names['assistant']), False)


def _gemma(messages, header):
  """Returns the pieces of Gemma 3, which puts the system's text before the user's."""
  if messages[0]['role'] == 'system':
    system, user, *rest = messages
    messages = [user | {'content': f'{system["content"].strip()}\n\n{user["content"].strip()}'}, *rest]
  names = {'user': 'user', 'assistant': 'model'}
  opening = '<start_of_turn>{}\n'
  return _written(messages, header, opening=opening, end='<end_of_turn>', gap='\n', names=names, strip=True)


def _style(**style):
  names = {role: role for role in ROLES} | style.pop('names', {})
  return functools.partial(_written, names=names, **style)


# {name: (messages, header -> pieces, symbols, the one that ends a turn)}
BUILT_IN = {
  'llmstack': (_style(opening='<|{}|>', end='</s>', gap='', strip=False), CHAT_TOKENS[:4], '</s>'),
  'chatml': (
    _style(opening='<|im_start|>{}\n', end='<|im_end|>', gap='\n', strip=False),
    ('<|im_start|>',),
    '<|im_end|>',
  ),
  'llama3': (
    _style(
      opening='<|start_header_id|>{}<|end_header_id|>\n\n', end='<|eot_id|>', gap='', strip=True,
      names={'tool': 'ipython'},
    ),
    ('<|start_header_id|>', '<|end_header_id|>'),
    '<|eot_id|>',
  ),
  'gemma': (_gemma, ('<start_of_turn>',), '<end_of_turn>'),
}  # fmt: skip
