// Draws the answers of several checkpoints; draw.js comes before. What a model says becomes text nodes only.
const models = data.models
const chance = (logp) => {
  const p = Math.exp(logp)
  return p > 0.9995 ? '> 99.9 %' : p < 1e-6 ? '< 0.0001 %' : p < 0.01 ? `${significant(100 * p, 2)} %` : percent(p)
}
const level = (logp) => data.levels.filter((p) => Math.exp(logp) < p).length
const fixed = (v, digits) => v.toFixed(digits).replace('-', '−')
const ordinal = (n) => `${whole(n)}${n % 100 >= 11 && n % 100 <= 13 ? 'th' : ['th', 'st', 'nd', 'rd'][n % 10] || 'th'}`
const word = (text) => visible(text).replaceAll('\n', '↵').replaceAll('\t', '⇥').replace(/^ +| +$/g, (s) => '␣'.repeat(s.length))
const mean = (view) => view.total / view.tokens.length

// ---------------------------------------------------------------- what a token was chosen from
const tip = $('tip')
let open = null
function close() {
  if (!open) return
  open.classList.remove('open')
  open.removeAttribute('aria-describedby')
  open = null
  tip.hidden = true
}
const bar = (logp) => {
  const d = el('div', { class: `p${level(logp)}` })
  d.style.width = `${Math.max(2, 100 * Math.exp(logp))}%`
  return el('td', { class: 'share', 'aria-hidden': 'true' }, d)
}
const line = (name, logp, own) => el('tr', { class: own ? 'own' : null }, el('td', { class: 'word' }, name), el('td', { class: 'num' }, chance(logp)), bar(logp))

function show(node, answer, reader, k) {
  if (open === node) return
  close()
  open = node
  const [text, , logp, rank, others] = answer.under[reader].tokens[k]
  const rest = answer.under.map((v, m) => [v, m]).filter(([v, m]) => m !== reader && v && v.anew === answer.under[reader].anew && !v.anew)
  tip.replaceChildren(...[
    el('div', { class: 'what' }, word(text)),
    el('div', { class: 'head' }, `${chance(logp)}, log-prob ${fixed(logp, 3)}, ${rank ? `the ${ordinal(rank + 1)} choice` : 'the first choice'} of ${models[reader].name}`),
    el('table', {}, el('tbody', {}, ...others.map(([t, l], i) => line(word(t), l, i === rank)), others.length <= rank ? line(word(text), logp, true) : null)),
    rest.length ? el('h4', {}, 'This token to the others') : null,
    rest.length ? el('table', {}, el('tbody', {}, ...rest.map(([v, m]) => line(models[m].name, v.tokens[k][2], false)))) : null,
  ].filter(Boolean))
  tip.hidden = false
  node.classList.add('open')
  node.setAttribute('aria-describedby', 'tip')
  if (getComputedStyle(tip).position !== 'fixed') {
    const at = node.getClientRects()[0]
    const { offsetWidth: w, offsetHeight: h } = tip
    const under = at.bottom + 8 + h < innerHeight || at.top < h + 8
    const x = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - w - 8))
    tip.style.transform = `translate(${x + scrollX}px, ${(under ? at.bottom + 8 : at.top - h - 8) + scrollY}px)`
  } else tip.style.transform = ''
}
addEventListener('keydown', (e) => { if (e.key === 'Escape') close() })
addEventListener('pointerdown', (e) => { if (!e.target.closest('.token, .over')) close() })

// ---------------------------------------------------------------- one answer
function card(answer, author) {
  const box = el('p', { class: 'tokens', role: 'group', 'aria-label': `What ${models[author].name} says, token by token; the arrow keys move` })
  const about = el('p', { class: 'note' })
  let reader = author
  const nodes = () => [...box.children]
  const choose = (m) => {
    close()
    reader = m
    const view = answer.under[m]
    box.replaceChildren(...view.tokens.map(([text, special, logp, rank], k) => el('span', {
      class: `token p${level(logp)}${rank ? ' other' : ''}${special ? ' special' : ''}`, tabindex: k ? -1 : 0, 'data-logp': logp,
    }, ...visible(text).split('\n').flatMap((part, i) => (i ? [el('span', { class: 'mark', 'aria-hidden': 'true' }, '↵'), '\n', part] : [part])))))
    const other = view.tokens.filter((t) => t[3]).length
    const parts = [many(view.tokens.length, 'token'), `mean log-prob ${fixed(mean(view), 3)}`]
    if (other) parts.push(`${m === author ? '' : `${models[m].name} `}would have said something else ${other === 1 ? 'once' : `${other} times`}`)
    if (view.anew) parts.push('in its own tokens')
    if (view.cut) parts.push('the beginning is longer than it reads and left out')
    if (!answer.done) parts.push('not ended')
    about.textContent = parts.join(', ')
    select.value = m
    changed.forEach((f) => f(reader))
  }
  const changed = []
  const select = el('select', { onchange: () => choose(Number(select.value)) }, ...models.map((m, i) => (answer.under[i] ? el('option', { value: i }, m.name) : null)))
  const detail = (e) => {
    const node = e.target.closest('.token')
    if (node) show(node, answer, reader, nodes().indexOf(node))
    return node
  }
  box.addEventListener('pointerover', (e) => { if (e.pointerType === 'mouse') detail(e) })
  box.addEventListener('pointerleave', (e) => { if (e.pointerType === 'mouse' && !box.contains(document.activeElement)) close() })
  box.addEventListener('focusin', (e) => {
    const node = detail(e)
    if (!node) return
    nodes().forEach((n) => n.setAttribute('tabindex', n === node ? 0 : -1))
    const [text, , logp, rank, others] = answer.under[reader].tokens[nodes().indexOf(node)]
    $('live').textContent = `${word(text)}: ${chance(logp)}${rank ? `, rather ${word(others[0][0])}, ${chance(others[0][1])}` : ''}`
  })
  box.addEventListener('focusout', (e) => { if (!box.contains(e.relatedTarget)) close() })
  box.addEventListener('click', (e) => { const node = detail(e); if (node) node.focus({ preventScroll: true }) })
  box.addEventListener('keydown', (e) => {
    const all = nodes()
    const at = all.indexOf(document.activeElement)
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[e.key]
    if (to === undefined || !all[to]) return
    e.preventDefault()
    all[to].focus()
  })
  const node = el('article', { class: `answer ${look(author)}` },
    el('header', {}, el('h3', {}, models[author].name), el('span', { class: 'note' }, `step ${whole(models[author].step)}`)),
    about, box,
    models.length > 1 ? el('label', { class: 'reader' }, 'coloured by the probabilities of', select) : null)
  return { node, choose, changed, author, answer }
}

// ---------------------------------------------------------------- answers by models
function cross(cards) {
  const cells = (c) => models.map((m, i) => {
    const view = c.answer.under[i]
    if (!view) return el('td', { class: 'note' }, 'none')
    const button = el('button', { type: 'button', title: `colour the answer of ${models[c.author].name} by ${m.name}`, onclick: () => { c.choose(i); c.node.scrollIntoView({ block: 'nearest' }) } },
      `${fixed(view.total, 1)}${view.anew ? '*' : ''}`, el('small', {}, `${fixed(mean(view), 3)} a token`))
    c.changed.push((reader) => button.setAttribute('aria-pressed', String(reader === i)))
    return el('td', { class: 'num' }, button)
  })
  const views = cards.flatMap((c) => c.answer.under).filter(Boolean)
  const notes = []
  if (views.some((v) => v.anew)) notes.push('* The text is encoded anew, in the tokens of a model whose tokenizer is not the author’s.')
  if (views.some((v) => v.cut)) notes.push('Where prompt and answer are longer than a model reads, it is given the end of them.')
  return el('div', { class: 'crossing' },
    el('p', { class: 'note' }, 'How likely each checkpoint finds each answer: log-prob in nats, and a token’s on average. A press colours the answer by it. ', notes.join(' ')),
    el('div', { class: 'wide' }, el('table', { class: 'cross' },
      el('thead', {}, el('tr', {}, el('td', {}), ...models.map((m) => el('th', { scope: 'col', class: 'num' }, `to ${m.name}`)))),
      el('tbody', {}, ...cards.map((c) => el('tr', {}, el('th', { scope: 'row' }, `${models[c.author].name} says`), ...cells(c)))))))
}

// ---------------------------------------------------------------- the page
const tokenizers = new Set(models.map((m) => m.tokenizer)).size
$('title').textContent = models.length > 1 ? 'One prompt, every stage' : 'One prompt, one checkpoint'
$('about').append(
  models.map((m) => `${m.name}: ${m.path}, step ${whole(m.step)}, ${short(m.parameters)} parameters`).join('; '), '. ',
  data.chat === null ? 'Each is asked in the template that it was tuned with; a base model continues the prompt. '
    : data.chat === 'none' ? 'Prompts are continued as they are. ' : `Prompts are a user’s messages in the template ${data.chat}. `,
  data.temperature ? `Sampled at temperature ${data.temperature}, seed ${data.seed}, ` : 'The likeliest token each time, ',
  `at most ${many(data.new_tokens, 'token')}. `, tokenizers > 1 ? 'The checkpoints have different tokenizers. ' : '',
  'Point at a token, tap it, or walk with Tab and the arrow keys.')
const edges = data.levels.map((p) => `${significant(100 * p, 3)}`)
const steps = [`over ${edges[0]} %`, ...edges.slice(1).map((low, i) => `${low} to ${edges[i]}`), `under ${last(edges)} %`]
$('legend').append(el('span', {}, 'probability'), ...steps.map((s, i) => el('span', {}, el('i', { class: `p${i}` }), s)), el('span', {}, el('i', { class: 'other' }), 'not the first choice'))
let drawn = 0
for (const round of data.prompts) {
  const cards = round.answers.map((answer, author) => (answer.under[author] ? card(answer, author) : null)).filter(Boolean)
  $('prompts').append(el('section', {},
    el('h2', { class: 'asked' }, el('small', {}, data.chat === 'none' ? 'to be continued' : 'asked'), visible(round.prompt)),
    el('div', { class: 'answers' }, ...cards.map((c) => c.node)), models.length > 1 ? cross(cards) : null))
  for (const c of cards) {
    c.choose(c.author)
    drawn += c.answer.under[c.author].tokens.length
  }
}
document.documentElement.dataset.ready = drawn
