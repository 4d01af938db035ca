"""Chat templates of Hugging Face, which are Jinja programs, run in a sandbox.

What is trained on is what the template puts between {% generation %} and {% endgeneration %}; without these tags, what
a prompt lacks of the conversation that it begins. Both from the end of the prompt, which is not learnt, to the token
that ends the turn, which is. Where a prompt is not how its conversation begins (templates that drop or add thoughts
are like that), what is learnt would not be what is asked for later, and the template is refused.

Contents are data: each control text in them is broken up by a character that no text may have (BREAK) before they are
rendered, and mended after the control texts that are left, the template's own, have been found.

The sandbox keeps a template from Python's internals and from files, and bounds what it writes; it does not bound the
time and the memory that the template takes on its way there. One that writes the date writes another every day.
Source: "Chat templates" of the transformers documentation, for the variables and functions that a template may use.
Deviation: exactly one BOS comes first, whether or not the template writes it.
"""

import datetime
import json
import os
import re

import jinja2
from jinja2 import ext, nodes, sandbox

from llmstack.data.chat import Piece, Template
from llmstack.data.sources import Bad
from llmstack.errors import BadInput

BREAK, BEGIN, END = '\ufdd0', '\ufdd1', '\ufdd2'  # noncharacters, "not for interchange"
LIMIT = 1 << 24  # characters of one rendered conversation
PROBE = [{'role': 'user', 'content': 'Ping?'}, {'role': 'assistant', 'content': 'Pong.'}]
SYMBOL = re.compile(r'<[|｜][^<>\s]+>|<[^<>\s]+[|｜]>|<(?:start|end)_of_\w+>|\[/?[A-Z_]+\]|</?s>')


class Generation(ext.Extension):
  """{% generation %} ... {% endgeneration %}: the body between the characters BEGIN and END."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    mark = lambda character: nodes.Output([nodes.TemplateData(character)]).set_lineno(line)  # noqa: E731
    return [mark(BEGIN), *body, mark(END)]


class Sandbox(sandbox.ImmutableSandboxedEnvironment):
  """Jinja's sandbox; products that fill the memory are refused as well."""

  intercepted_binops = frozenset(['*', '**'])

  def call_binop(self, context, operator, left, right):
    for a, b in ((left, right), (right, left)):
      if isinstance(a, str | list | tuple) and isinstance(b, int) and len(a) * b > LIMIT:
        raise sandbox.SecurityError(f'a product of {len(a) * b} characters')
    if operator == '**' and isinstance(right, int | float) and abs(right) > 64:
      raise sandbox.SecurityError(f'a power of {right}')
    return super().call_binop(context, operator, left, right)


def _refuse(message):
  raise jinja2.TemplateError(message)


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _compiled(source, name):
  """Returns the jinja2.Template. Raises: BadInput with the line."""
  box = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
  box.globals |= {
    'raise_exception': _refuse, 'strftime_now': lambda form: datetime.datetime.now().strftime(form),
  }  # fmt: skip
  box.filters['tojson'] = _json
  try:
    return box.from_string(source)
  except jinja2.TemplateSyntaxError as error:
    raise BadInput(f'{name}, line {error.lineno} of the template: {error.message}') from None


def _read(path):
  """Returns (Jinja source, {'bos_token': text, ...}, [added token])."""
  with open(path, encoding='utf-8') as file:
    text = file.read()
  if not path.endswith('.json'):
    return text, {}, []
  try:
    told = json.loads(text)
  except json.JSONDecodeError as error:
    raise BadInput(f'{path} is not JSON ({error}): give a tokenizer_config.json') from None
  source = told.get('chat_template')
  if isinstance(source, list):  # several, by name
    named = {one['name']: one['template'] for one in source}
    source = named.get('default')
  beside = os.path.join(os.path.dirname(path), 'chat_template.jinja')
  if source is None and os.path.isfile(beside):
    source = _read(beside)[0]
  if not isinstance(source, str):
    raise BadInput(f'{path} has no chat_template, nor a chat_template.jinja beside it: choose a built-in template')
  spelled = lambda token: token.get('content') if isinstance(token, dict) else token  # noqa: E731
  tokens = {key: spelled(value) for key, value in told.items() if key.endswith('_token')}
  added = [spelled(token) for token in told.get('added_tokens_decoder', {}).values() if token.get('special')]
  return source, {key: value for key, value in tokens.items() if isinstance(value, str)}, added


class JinjaTemplate(Template):
  """A Template that a tokenizer_config.json or a .jinja file writes."""

  def __init__(self, path, tokenizer):
    source, tokens, added = _read(path)
    self._program = _compiled(source, path)
    names = {i: text for text, i in tokenizer.symbols.items()}
    ids = {'bos_token': tokenizer.bos, 'eos_token': tokenizer.eos}
    self._tokens = {key: names[i] for key, i in ids.items() if i in names} | tokens
    aliases = {self._tokens[key]: i for key, i in ids.items() if i is not None and key in self._tokens}
    self._setup(path, tokenizer, source, {text: i for text, i in aliases.items() if text})
    self._hide()
    rendered = self._render(PROBE, False)
    self._marked = BEGIN in rendered
    _, said, rest = rendered.rpartition(PROBE[1]['content'])
    rest = re.sub(f'[{BEGIN}{END}]', '', rest).strip()
    if not said:
      raise BadInput(f'{path} does not write what the assistant says: choose a template for contents that are text')
    known = re.match('|'.join(sorted(map(re.escape, self.symbols), key=len, reverse=True)) or '(?!)', rest)
    ends = known or SYMBOL.match(rest)
    if not ends:
      raise BadInput(
        f'{path} lets {rest!r:.40} follow what the assistant says, and no token that ends its turn: write '
        '{{ eos_token }} after the content'
      )
    literal = [text for text in dict.fromkeys([*SYMBOL.findall(source), *added]) if text in source]
    self._end(ends[0], literal)
    self._hide()

  def _hide(self):
    """Sets how control texts are looked for in contents: whole ones, and parts that a neighbour may complete."""
    found = [text for text in self.symbols if text]
    self._whole = re.compile(f'(?=(?:{"|".join(map(re.escape, found))}))(.)', re.DOTALL) if found else None
    self._heads = {text[:i] for text in found for i in range(1, len(text))}
    self._tails = {text[i:] for text in found for i in range(1, len(text))}
    self._longest = max(map(len, found), default=0)

  def _hidden(self, value, where):
    """Returns the value with its texts, at any depth, broken up wherever they spell a control text."""
    if isinstance(value, dict):
      return {k: v if k == 'role' else self._hidden(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [self._hidden(v, where) for v in value]
    if not isinstance(value, str):
      return value
    if odd := {BREAK, BEGIN, END}.intersection(value):
      raise Bad('noncharacter', f'{where} has U+{ord(min(odd)):04X}, which is no character: remove it')
    text = self._whole.sub(rf'\1{BREAK}', value) if self._whole else value
    core = text.strip()
    if any(core[-i:] in self._heads for i in range(1, min(len(core), self._longest) + 1)):
      text = text.replace(core, core + BREAK)
    begins = any(core[:i] in self._tails for i in range(1, min(len(core), self._longest) + 1))
    if begins or 0 < len(core) < self._longest and any(core in symbol for symbol in self.symbols):
      text = text.replace(core, BREAK + core)
    return text

  def _render(self, messages, header):
    """Returns str with BEGIN and END around generations, and BREAK in hidden control texts."""
    told = [self._hidden(message, f'message {i}') for i, message in enumerate(messages)]
    parts, size = [], 0
    try:
      for part in self._program.generate(
        messages=told, add_generation_prompt=header, tools=None, documents=None, **self._tokens
      ):
        parts.append(part)
        size += len(part)
        if size > LIMIT:
          raise BadInput(f'{self.name} writes more than {LIMIT} characters for one conversation: correct the template')
    except BadInput:
      raise
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
      raise Bad('template raises', f'{self.name} refuses {len(messages)} messages: {error}') from None
    return ''.join(parts)

  def _pieces(self, messages, header, marked):
    text = self._render(messages, header)
    try:
      pieces = (self._by_marks if self._marked else self._by_prefix)(text, messages, header)
    except Bad:
      if marked:
        raise
      pieces = [Piece(text.replace(BEGIN, '').replace(END, ''), False)]
    first, bos = pieces[0].text, self._tokens.get('bos_token')
    while bos and self.tokenizer.bos is not None and first.startswith(bos):
      first = first.removeprefix(bos)
    return [pieces[0]._replace(text=first), *pieces[1:]]

  def _by_marks(self, text, messages, header):
    """Returns [Piece] of the text between the marks, and around it."""
    parts = re.split(f'{BEGIN}([^{BEGIN}{END}]*){END}', text)
    turns = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    # Some mark an EOS at the end of all, on its own.
    if len(parts) == 2 * len(turns) + 3 and self._find.fullmatch(parts[-2].strip()):
      parts[-3:] = [''.join(parts[-3:])]
    if len(parts) != 2 * len(turns) + 1 or any(mark in part for part in parts for mark in (BEGIN, END)):
      raise Bad(
        'no generation marker',
        f'{self.name} marks {len(parts) // 2} generations of {len(turns)} assistant turns: put one '
        '{% generation %} block around what each says and its end token',
      )
    if not turns:
      return [Piece(text, False)]
    prompt, end = self._render(messages[: turns[0]], True), self._ending
    asked = prompt.removeprefix(parts[0])  # the end of the header, which some mark as well
    pieces, after = [], parts[0]
    for turn, body in enumerate(parts[1::2]):
      if not (prompt.startswith(parts[0]) and body.startswith(asked)):
        raise Bad(
          'no generation marker',
          f'{self.name} ends a prompt with {prompt[-20:]!r}, but has {after[-20:] + body[:20]!r} where '
          '{% generation %} begins: what a prompt ends with must be how the turn begins, or set train_on to all',
        )
      pieces.append(Piece(after + asked, False))
      body, after = body.removeprefix(asked), parts[2 * turn + 2]
      said, found, rest = body.rpartition(end)
      if found and not rest.strip():
        body, after = said + end, rest + after
      elif after.startswith(end):
        body, after = body + end, after.removeprefix(end)
      pieces.append(Piece(body, False, turn))
    return [*pieces, Piece(after, False)]

  def _by_prefix(self, text, messages, header):
    """Returns [Piece] of the text, by what the prompt of each turn lacks."""
    pieces, at = [], 0
    turns = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
    for turn, i in enumerate(turns):
      prompt = self._render(messages[:i], True)
      whole = text if i + 1 == len(messages) and not header else self._render(messages[: i + 1], False)
      shared = os.path.commonprefix([text, whole])  # some write EOS after the last message of all
      stop = shared.rfind(self._ending, len(prompt)) + len(self._ending)
      if not shared.startswith(prompt) or stop < len(prompt) + len(self._ending):
        raise Bad(
          'no generation marker',
          f'{self.name} has no {{% generation %}} block, and its prompt for message {i} is not how the conversation '
          'begins: put the block around what the assistant says and its end token, or set train_on to all',
        )
      pieces += [Piece(text[at : len(prompt)], False), Piece(text[len(prompt) : stop], False, turn)]
      at = stop
    return [*pieces, Piece(text[at:], False)]

  def _ids(self, piece):
    return self._markup(piece.text, BREAK)
