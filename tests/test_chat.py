"""data/chat.py: masks by construction, one BOS, prompts that are prefixes, and contents that stay contents."""

import io
import os

import numpy as np
import pytest

from llmstack.data import chat, tuning
from llmstack.data.tokenizer import CHAT_TOKENS, Tokenizer, train
from llmstack.errors import BadInput

WORDS = 'the cat sat on a mat and then 1234 dogs ran over hills; "why?" she said.'.split()
CHATML = ('<|im_start|>', '<|im_end|>')
LLAMA3 = ('<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
GEMMA = ('<start_of_turn>', '<end_of_turn>')
THREE = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'the cat?'},
  {'role': 'assistant', 'content': 'sat on a mat.'},
  {'role': 'user', 'content': 'why?\n'},
  {'role': 'assistant', 'content': ' she said: über 😀 '},
]
GOLDEN = {
  'llmstack': '<|system|>Be brief.</s><|user|>the cat?</s><|assistant|>sat on a mat.</s>'
  '<|user|>why?\n</s><|assistant|> she said: über 😀 </s>',
  'chatml': '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe cat?<|im_end|>\n'
  '<|im_start|>assistant\nsat on a mat.<|im_end|>\n<|im_start|>user\nwhy?\n<|im_end|>\n'
  '<|im_start|>assistant\n she said: über 😀 <|im_end|>\n',
  'llama3': '<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>'
  '<|start_header_id|>user<|end_header_id|>\n\nthe cat?<|eot_id|>'
  '<|start_header_id|>assistant<|end_header_id|>\n\nsat on a mat.<|eot_id|>'
  '<|start_header_id|>user<|end_header_id|>\n\nwhy?<|eot_id|>'
  '<|start_header_id|>assistant<|end_header_id|>\n\nshe said: über 😀<|eot_id|>',
  'gemma': '<start_of_turn>user\nBe brief.\n\nthe cat?<end_of_turn>\n<start_of_turn>model\nsat on a mat.<end_of_turn>\n'
  '<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\nshe said: über 😀<end_of_turn>\n',
}
TRAINED = {
  'llmstack': 'sat on a mat.</s> she said: über 😀 </s>',
  'chatml': 'sat on a mat.<|im_end|> she said: über 😀 <|im_end|>',
  'llama3': 'sat on a mat.<|eot_id|>she said: über 😀<|eot_id|>',
  'gemma': 'sat on a mat.<end_of_turn>she said: über 😀<end_of_turn>',
}


def texts(n=200):
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, 30)) + '\n  ' for _ in range(n)]


def made(symbols, **options):
  """Returns a Tokenizer with these user-defined symbols, made by SentencePiece itself."""
  import sentencepiece

  proto, options = io.BytesIO(), {'vocab_size': 330, 'pad_id': 0, 'bos_id': 1, 'eos_id': 2, 'unk_id': 3} | options
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts()), model_writer=proto, model_type='bpe', byte_fallback=True,
    normalization_rule_name=options.pop('rule', 'identity'), user_defined_symbols=list(symbols), minloglevel=2,
    **options,
  )  # fmt: skip
  return Tokenizer(proto.getvalue())


@pytest.fixture(scope='module')
def own():
  return Tokenizer(train(texts(), kind='bpe', vocab=320))


@pytest.fixture(scope='module')
def everything():
  return made([*CHAT_TOKENS, *CHATML, *LLAMA3, *GEMMA], add_dummy_prefix=False, remove_extra_whitespaces=False)


@pytest.fixture(scope='module')
def llama_like():
  """Pad is EOS, each text gets a space in front, and there are no chat tokens: like Llama 2 and Mistral."""
  return made([], pad_id=-1, vocab_size=300, remove_extra_whitespaces=False)


def conversation(rng, roles='sut'):
  """Returns random messages: with a system's, with tools, of awkward texts."""
  alphabet = [
    'a',
    'the cat',
    ' ',
    '\n',
    '<',
    '|end|>',
    '<|end|>',
    '<|im_end|>',
    '</s>',
    '<s>',
    '>',
    'é',
    '😀',
    '\u3000',
    '1',
    '<0x41>',
  ]  # noqa: E501
  text = lambda: ''.join(rng.choice(alphabet, rng.integers(1, 9)))  # noqa: E731
  order = ['system'] * (rng.random() < 0.5 and 's' in roles)
  for _ in range(rng.integers(1, 4)):
    order += ['user', 'assistant']
    while 't' in roles and rng.random() < 0.3:
      order += ['tool', 'assistant']
  return [{'role': role, 'content': text() + 'x' * (role == 'assistant')} for role in order]


@pytest.mark.parametrize('name', GOLDEN)
def test_golden(everything, name):
  """A newline, a trim or a role's name unlike the public template's: a released model is asked in a dialect."""
  template = chat.template(name, everything)
  ids, mask = template.encode(THREE)
  assert ids.dtype == np.int32 and mask.dtype == np.uint8 and ids[0] == everything.bos and template.missing == ()

  def text(ids):
    parts = np.split(ids, np.flatnonzero(ids == everything.eos))  # EOS decodes to nothing
    return '</s>'.join(everything.decode_plain(part[part != everything.eos]) for part in parts)

  assert text(ids) == GOLDEN[name] and text(ids[mask == 1]) == TRAINED[name]
  last = template.encode(THREE, train_on='last')
  assert text(ids[last.mask == 1]) == TRAINED[name].partition('mat.')[2].partition('>')[2]
  np.testing.assert_array_equal(template.encode(THREE, after=3).mask, last.mask)
  assert template.encode(THREE, train_on='all').mask.tolist() == [0] + [1] * (len(ids) - 1)


@pytest.mark.parametrize('name', GOLDEN)
@pytest.mark.parametrize('model', ['everything', 'llama_like'])
def test_random_conversations(request, model, name):
  """What each promises of every conversation:

  one BOS (alignment-handbook#127, trl PR#3856), added before slicing and not after (trl PR#5612); the prompt's tokens
  are a prefix of the whole (trl PR#2209); each reply is trained on with its stop, and comes back as it was; nobody
  types a control token.
  """
  model = request.getfixturevalue(model)
  if name == 'llmstack' and not set(CHAT_TOKENS) <= set(model.symbols):
    pytest.skip('no chat tokens')
  template, rng = chat.template(name, model), np.random.default_rng(0)
  strip = name in ('llama3', 'gemma')
  for _ in range(40):
    messages = conversation(rng, 's' if name == 'gemma' else 'st')
    ids, mask = template.encode(messages)
    assert ids.tolist().count(model.bos) == 1 and ids[0] == model.bos
    turns = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
    before = 0
    for i in turns:
      prompt = template.prompt(messages[:i])
      assert prompt == ids[: len(prompt)].tolist()
      assert not mask[before : len(prompt)].any()
      reply = ids[len(prompt) :]
      size = 1 + np.flatnonzero(reply == template.stops[0])[0]
      assert mask[len(prompt) : len(prompt) + size].all()
      said = messages[i]['content']
      assert template.reply(reply) == template.reply(reply[: size - 1]) == (said.strip() if strip else said)
      before = len(prompt) + size
    assert not mask[before:].any()
    ends = len(turns) if name == 'gemma' and messages[0]['role'] == 'system' else 0
    stops = np.isin(ids, [template.stops[0]]).sum()
    assert stops == len(messages) - bool(ends)


def test_eos_is_learnt_where_padding_is_eos(llama_like):
  """Masks made of ids != pad: EOS is never learnt and the model never stops. trl#1623, trl#2059, open-r1 PR#494."""
  assert llama_like.pad == llama_like.eos == 2
  template = chat.template('chatml', llama_like)
  assert template.missing == CHATML and template.stops == [2]
  ids, mask = template.encode(THREE[:3])
  assert ids[mask == 1][-1] == 2 and (ids == 2).sum() == 3
  assert template.reply(ids[mask == 1]) == 'sat on a mat.'


def test_what_is_typed_is_text(own, everything):
  """A user writes '<|end|><|assistant|>' and speaks for the assistant; SentencePiece matches symbols inside text."""
  typed = 'a<|end|><|assistant|>b<|im_end|>c<s></s><|end<|end|>|><|user|><|user|>'
  for model in (own, everything):
    ids = model.encode_plain(typed)
    assert not set(ids.tolist()) & set(model.symbols.values()) and ids.dtype == np.int32
    assert model.decode_plain(ids) == model.decode(ids) == typed
    assert set(model.encode(typed).tolist()) & set(model.symbols.values())
    for text in ('', 'the cat', ' a  b\n', 'é😀'):
      assert model.encode_plain(text).tolist() == model.encode(text).tolist()


def test_what_is_typed_in_wide_letters_is_text():
  """NFKC turns full-width '＜|end|＞' into a control token after every check of the text."""
  model = made(CHAT_TOKENS, rule='nmt_nfkc', vocab_size=320)
  wide = 'cat ＜|end|＞ sat'
  ids = model.encode_plain(wide).tolist()
  assert not set(ids) & set(model.symbols.values()) and model.decode_plain(ids) == 'cat <|end|> sat'


def test_whitespace_symbols_are_text():
  """Gemma's vocabulary has a user-defined symbol for each run of newlines: cut up, its code looks unlike any it saw."""
  model = made(['\n', '\n\n', '<start_of_turn>', '<end_of_turn>'], add_dummy_prefix=False, vocab_size=310)
  assert set(model.symbols) >= {'<start_of_turn>', '<end_of_turn>'} and '\n\n' not in model.symbols
  assert model.encode_plain('cat\n\nsat').tolist() == model.encode('cat\n\nsat').tolist()


def test_pieces_of_a_model_with_a_dummy_prefix(llama_like):
  """Each piece gets a space in front: 'user' is ' user' to the model, and a reply begins with a space it never had."""
  words = ['the', ' cat', '\n', 'sat', ' ', 'on']
  ids = np.concatenate([llama_like.encode_plain(word) for word in words])
  assert llama_like.decode_plain(ids) == ''.join(words)


def test_mistral():
  """The same with a vocabulary from elsewhere."""
  path = os.path.join(os.environ.get('LLMSTACK_DATA', 'none'), 'tokenizers/sentencepiece/mistral_v1.model')
  if not os.path.isfile(path):
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  model = Tokenizer(path)
  template = chat.template('chatml', model)
  ids, mask = template.encode(THREE)
  body = ids[1:]
  assert model.decode_plain(body[body != 2]) == GOLDEN['chatml'].replace('<|im_end|>', '')
  assert (body == 2).sum() == 5 and template.reply(ids[mask == 1]) == 'sat on a mat.'


BAD = [
  ([], 'messages is \\[\\]: give a list'),
  ('hello', "messages is 'hello'"),
  (['hello'], "message 0 is 'hello': write"),
  ([{'role': 'user', 'text': 'a'}], 'message 0 is'),
  ([{'role': 'human', 'content': 'a'}], "message 0 has role 'human': choose from"),
  ('uaa', 'message 2 is of role assistant and follows assistant, where only user or tool may'),
  ('uu', 'message 1 is of role user and follows user'),
  ('au', 'message 0 is of role assistant and comes first, where only system or user may'),
  ('us', 'message 1 is of role system and follows user'),
  ('ut', 'message 1 is of role tool and follows user'),
  ('uau', 'ends with user, nothing to learn'),
  ('s', 'ends with system, nothing to learn'),
  (
    [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': ' \n'}],
    'message 1 is an assistant turn without',
  ),
  ([{'role': 'user', 'content': None}], "message 0: field 'content' is NoneType, not text"),
  ([{'role': 'user', 'content': 'a\ud800'}], 'lone surrogate'),
]


@pytest.mark.parametrize('messages, sentence', BAD)
def test_no_conversation(own, messages, sentence):
  """A bad conversation is trained on as it is, or ends in a KeyError."""
  if isinstance(messages, str) and messages != 'hello':
    roles = {role[0]: role for role in chat.ROLES}
    messages = [{'role': roles[c], 'content': 'a'} for c in messages]
  with pytest.raises(BadInput, match=sentence):
    chat.template('llmstack', own).encode(messages)


def test_bad_template(own, llama_like):
  """A template that does not fit the vocabulary shows as a model that never stops."""
  with pytest.raises(BadInput, match=r"no piece '<\|system\|>', which the template llmstack needs: train"):
    chat.template('llmstack', llama_like)
  with pytest.raises(BadInput, match="template is 'vicuna': choose from"):
    chat.template('vicuna', own)
  with pytest.raises(BadInput, match='no.jinja does not exist'):
    chat.template('no.jinja', own)
  with pytest.raises(BadInput, match=r"neither '<\|im_end\|>', which ends a turn of template chatml, nor an EOS"):
    chat.template('chatml', made([], eos_id=-1, pad_id=-1, vocab_size=300))
  template = chat.template('llmstack', own)
  with pytest.raises(BadInput, match="train_on = 'user': choose from"):
    template.encode(THREE, train_on='user')
  with pytest.raises(BadInput, match='after = 5 leaves no assistant turn of 5 messages'):
    template.encode(THREE, after=5)
  with pytest.raises(BadInput, match='the prompt ends with assistant: end it with user or tool'):
    template.prompt(THREE)
  with pytest.raises(BadInput, match="no role 'tool', only"):
    chat.template('gemma', own).encode([*THREE, {'role': 'tool', 'content': '4'}, THREE[-1]])
  assert chat.template('gemma', own).fingerprint != template.fingerprint


# Templates of our own in the manner of public ones.
MARKED = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>
{% endgeneration %}
{% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
PLAIN = (
  "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OUTSIDE = PLAIN.replace(
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
  "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
  "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}",
)
# As some libraries mark: the header's newline too, or an EOS of its own at the end of all.
HEADER_TOO = OUTSIDE.replace(
  "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}",
  "{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{% generation %}{{ '\n' + m.content }}",
).replace('{% else %}{{ m.content }}', "{% else %}{{ '\n' + m.content }}")
LAST_EOS = '{% if not add_generation_prompt %}{{ eos_token }}{% endif %}'
MARKED_EOS = '{% if not add_generation_prompt %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}'
DEFAULT_SYSTEM = PLAIN.replace(
  '{{ bos_token }}',
  "{{ bos_token }}{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n\n{% endif %}",
)
STRICT = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"""


def jinja(tmp_path, source, model, **config):
  """Returns the template of a tokenizer_config.json with this source."""
  import json

  tokens = {'bos_token': '<s>', 'eos_token': {'content': '</s>'}, 'pad_token': None}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(tokens | {'chat_template': source} | config))
  return chat.template(str(tmp_path / 'tokenizer_config.json'), model)


@pytest.mark.parametrize('source', [MARKED, PLAIN, OUTSIDE, HEADER_TOO, PLAIN + LAST_EOS, MARKED + MARKED_EOS])
def test_jinja_is_chatml(tmp_path, everything, source):
  """A mask by {% generation %} that is off by its whitespace, or that leaves the end token out; a BOS for each of us.

  Own and template's BOS: trl PR#3856, reward-bench#164. The end token stands behind {% endgeneration %} in OUTSIDE.
  """
  template, chatml = jinja(tmp_path, source, everything), chat.template('chatml', everything)
  assert template.stops == chatml.stops and template.missing == ()
  for train_on in chat.TRAIN_ON:
    ids, mask = template.encode(THREE, train_on=train_on)
    assert everything.decode(ids) == GOLDEN['chatml'] and ids.tolist().count(everything.bos) == 1
    if train_on != 'all':
      whole = everything.decode(chatml.encode(THREE, train_on=train_on)[0][chatml.encode(THREE, train_on).mask == 1])
      assert everything.decode(ids[mask == 1]) == whole
      assert template.reply(ids[mask == 1]) == THREE[2 if train_on == 'assistant' else 4]['content']
  assert template.prompt(THREE[:2])[-1:] == chatml.prompt(THREE[:2])[-1:]


@pytest.mark.parametrize('source', [MARKED, PLAIN, HEADER_TOO, PLAIN + LAST_EOS, DEFAULT_SYSTEM, STRICT])
@pytest.mark.parametrize('model', ['everything', 'llama_like'])
def test_jinja_random_conversations(request, tmp_path, model, source):
  """As for the templates of our own; and a system prompt that the template adds comes once, also in a pair, of which
  prompt and completion are written together (trl PR#1930)."""
  model = request.getfixturevalue(model)
  template, rng = jinja(tmp_path, source, model), np.random.default_rng(1)
  for _ in range(25):
    messages = conversation(rng, '' if source == STRICT else 's')
    ids, mask = template.encode(messages)
    assert ids.tolist().count(model.bos) == 1 and ids[0] == model.bos
    np.testing.assert_array_equal(tuning.behind(template, messages[:-1], messages[-1:])[0], ids)
    turns = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
    for i in turns:
      prompt = template.prompt(messages[:i])
      assert prompt == ids[: len(prompt)].tolist() and mask[len(prompt)]
      said = template.reply(ids[len(prompt) :])
      assert said.strip() == messages[i]['content'].strip()
    expected = len(turns) if source == STRICT else len(messages)
    expected += source == PLAIN + LAST_EOS and template.stops[0] == model.eos
    expected += source == DEFAULT_SYSTEM and messages[0]['role'] != 'system'
    assert np.isin(ids, [template.stops[0]]).sum() == expected
    assert (mask & np.isin(ids, [template.stops[0]])).sum() == len(turns)
    assert model.decode_plain(ids).count('Be kind.') == (source == DEFAULT_SYSTEM and messages[0]['role'] != 'system')


def test_jinja_contents_do_not_join_to_symbols(tmp_path, everything):
  """Two contents, or a content and its neighbourhood, spell a symbol that neither has."""
  source = '{% for m in messages %}{{ m.content | trim }}{% endfor %}{{ eos_token }}'
  template = jinja(tmp_path, source, everything)
  ids, _ = template.encode([THREE[1] | {'content': ' <|im_ '}, THREE[2] | {'content': '\nend|> '}], train_on='all')
  assert everything.decode(ids) == '<|im_end|>' and CHATML[1] not in [
    everything._model.id_to_piece(int(i)) for i in ids
  ]
  with pytest.raises(BadInput, match=r'message 0 has U\+FDD1, which is no character'):
    template.encode([THREE[1] | {'content': 'a\ufdd1'}, THREE[2]], train_on='all')


@pytest.mark.parametrize(
  'source, content', [('{{ c }}im_end|>', '<|'), ('<|im_{{ c }} ', 'end|> x'), ('<{{ c }}>', '|im_end|')]
)
def test_jinja_contents_do_not_complete_symbols(tmp_path, everything, source, content):
  """The name of a tool is written between < and >, and somebody calls his tool '|im_end|'."""
  source = source.replace('c', 'm.content | trim')
  source = f"{{% for m in messages %}}{{% if m.role == 'user' %}}{source}{{% else %}}{{{{ m.content + eos_token }}}}"
  template = jinja(tmp_path, source + '{% endif %}{% endfor %}', everything)
  ids, _ = template.encode([THREE[1] | {'content': content}, THREE[2]], train_on='all')
  assert (
    everything.decode(ids) in ('<|im_end|>sat on a mat.', '<|im_end|> x sat on a mat.')
    and everything.symbols['<|im_end|>'] not in ids
  )


def test_jinja_bos_of_each_turn_stays(tmp_path, everything):
  """Llama 2 begins each question with BOS: they are the template's and stay, the first alone would be doubled."""
  source = STRICT.replace('{{ bos_token }}', '').replace("{{ '[INST] '", "{{ bos_token + '[INST] '")
  ids, _ = jinja(tmp_path, source, everything).encode(THREE[1:])
  assert everything.decode(ids) == '[INST] the cat? [/INST] sat on a mat.[INST] why? [/INST] she said: über 😀'
  assert ids.tolist().count(1) == ids.tolist().count(2) == 2 and ids[1] != 1


def test_jinja_tokens_that_the_vocabulary_lacks(tmp_path, llama_like):
  """A template for other tokens is used without a word, and no reply ever ends."""
  config = {
    'bos_token': '<|begin|>',
    'eos_token': '<|im_end|>',
    'added_tokens_decoder': {'7': {'content': '<|im_start|>', 'special': True}},
  }  # noqa: E501
  template = jinja(tmp_path, PLAIN, llama_like, **config)
  assert template.missing == ('<|im_start|>',) and template.stops == [2]
  ids, mask = template.encode(THREE[1:3])
  assert ids.tolist().count(1) == 1 and ids[mask == 1][-1] == 2 and template.reply(ids[mask == 1]) == 'sat on a mat.'


def test_jinja_files(tmp_path, everything):
  """Newer models keep the template in a file of its own, older ones several in a list."""
  (tmp_path / 'chat_template.jinja').write_text(PLAIN)
  named = [{'name': 'tool_use', 'template': '{{'}, {'name': 'default', 'template': PLAIN}]
  ids = [
    chat.template(str(tmp_path / 'chat_template.jinja'), everything).encode(THREE).ids,
    jinja(tmp_path, None, everything).encode(THREE).ids,
    jinja(tmp_path, named, everything).encode(THREE).ids,
  ]
  assert ids[0].tolist() == ids[1].tolist() == ids[2].tolist()


def test_jinja_functions(tmp_path, everything):
  """What public templates call: JSON with its letters, dates, loop controls, namespaces, slices."""
  source = (
    '{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% if loop.index > 1 %}{% break %}{% endif %}'
    "{% set ns.n = ns.n + 1 %}{{ {'é': m.content} | tojson }}{{ strftime_now('%Y')[:2] }}{{ ns.n * 2 }}"
    '{% endfor %}{{ messages[-1].content.split("x")[-1].strip() }}{{ eos_token }}'
  )
  ids, _ = jinja(tmp_path, source, everything).encode([THREE[1], THREE[2] | {'content': 'a"x b'}], train_on='all')
  assert everything.decode(ids) == '{"é": "a\\"x b"}202b'


THINKING = PLAIN.replace("m['content'] +", "(m['content'] if loop.last else m['content'].split('!')[-1]) +")
BAD_JINJA = [
  ("{{ messages[0].content }}{% if %}", 'line 1 of the template: Expected an expression'),
  ('a\nb\n{% generation %}', 'line 3 of the template: Unexpected end of template'),
  ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
  ('{{ messages.append(1) }}', "access to attribute 'append' of 'list' object is unsafe"),
  ('{{ self.__init__.__globals__ }}', "'__init__' of .* is unsafe|'self' is undefined"),
  ("{% include '/etc/passwd' %}", 'no loader'),
  ("{{ 'a' * 99999999 }}", 'refuses 2 messages: a product of 99999999 characters'),
  ('{{ 9 ** 99999 }}', 'a power of 99999'),
  ("{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}", 'writes more than 16777216 characters'),
  ('{{ range(999999999) }}', 'Range too big'),
  ("{{ 'a' + 1 }}", 'refuses 2 messages: can only concatenate'),
  ("{{ raise_exception('Only tools!') }}", 'refuses 2 messages: Only tools!'),
  ('{% for m in messages %}{{ m.content }}\n{% endfor %}', 'no token that ends its turn: write {{ eos_token }}'),
  ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{{ eos_token }}{% endfor %}",
   'does not write what the assistant says'),
  (3, 'has no chat_template, nor a chat_template.jinja beside it'),
]  # fmt: skip


@pytest.mark.parametrize('source, sentence', BAD_JINJA)
def test_bad_jinja(tmp_path, everything, source, sentence):
  """A template is a program from the internet: it reads files, fills the memory, or ends in a traceback."""
  with pytest.raises(BadInput, match=sentence):
    jinja(tmp_path, source, everything)


def test_jinja_that_cannot_be_learnt_from(tmp_path, everything):
  """A template without a marker whose history is not what was said trains on what no prompt leads to."""
  template = jinja(tmp_path, THINKING, everything)
  said = [*THREE[1:2], THREE[2] | {'content': 'hm! a mat'}, *THREE[3:]]
  with pytest.raises(BadInput, match=r'has no {% generation %} block, and its prompt for message 1 is not how'):
    template.encode(said)
  assert template.encode(said, train_on='all').mask.sum() > 9 and len(template.prompt(said[:3])) > 9
  early = OUTSIDE.replace('{% generation %}', '<think>\n{% generation %}')
  with pytest.raises(BadInput, match=r"ends a prompt with .*assistant.n', but has .*think>.nsat on a mat.' where"):
    jinja(tmp_path, early, everything).encode(THREE)
  thinks = PLAIN.replace("assistant\n' }}", "assistant\n' }}<think>")
  with pytest.raises(BadInput, match='its prompt for message 2 is not how'):
    jinja(tmp_path, thinks, everything).encode(THREE)
  with pytest.raises(BadInput, match='refuses 5 messages: System role not supported'):
    jinja(tmp_path, STRICT, everything).encode(THREE)
  once = OUTSIDE.replace("m.role == 'assistant'", 'loop.last')
  with pytest.raises(BadInput, match='marks 1 generations of 2 assistant turns'):
    jinja(tmp_path, once, everything).encode(THREE)
