// The enlarged view of one map, and the arrow keys. The page is complete without this script.
(() => {
  const data = JSON.parse(document.getElementById('page.data').textContent)
  const view = document.querySelector('.view')
  const cards = [...document.querySelectorAll('.map')]
  const rows = data.layers.flatMap(layer => layer.rows.map((row, place) => ({ layer, row, place })))
  let here = -1

  // An element with attributes and children; text is only ever set as text.
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag)
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
    element.append(...children)
    return element
  }
  const many = n => n.toLocaleString('en')
  const signed = n => String(n).replace('-', '−')
  const short = v => {
    const size = Math.abs(v)
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return signed(v.toExponential(2))
    return signed(v.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3))
  }

  // The i-th tile of a map, cut out of its sheet; all lengths in shares of the tile's side, half a
  // pixel left off all round lest the gutter shine through.
  const tile = ({ layer, place }, i, file, alt) => {
    const [side, gutter, pitch, columns, blocks, width, enlarged] = layer.grid
    const cell = place % blocks
    const x = (cell % columns) * pitch + (i % 3) * (side + gutter)
    const y = Math.floor(cell / columns) * pitch + Math.floor(i / 3) * (side + gutter)
    const name = file.replace('#', String(Math.floor(place / blocks)).padStart(3, '0'))
    const img = make('img', { src: data.folder + layer.slug + '/' + name, alt })
    const percent = pixels => (pixels / (side - 1)) * 100 + '%'
    Object.assign(img.style, { width: percent(width), left: percent(-x - 0.5), top: percent(-y - 0.5) })
    return make('div', { class: enlarged ? 'tile crisp' : 'tile' }, img)
  }

  const pair = (entry, i) => {
    const [number, y, x, value, x0, y0, x1, y1] = entry.row.slice(1 + i * 8, 9 + i * 8)
    const [path, kind] = data.images[number]
    const name = data.classes[kind]
    return make('li', {}, make('figure', { class: 'pair' },
      tile(entry, i, 'projections-#.png', `projection ${i + 1}`),
      tile(entry, i, 'patches-#.jpg', `patch ${i + 1}${name && ', ' + name}`),
      make('figcaption', {},
        make('b', {}, short(value)), name ? ` ${name}` : '', make('br', {}),
        make('code', {}, path), make('br', {}),
        `unit y ${y}, x ${x}; patch x ${signed(x0)} to ${signed(x1)}, y ${signed(y0)} to ${signed(y1)}`)))
  }

  const button = (text, label, act) => {
    const element = make('button', { type: 'button', 'aria-label': label, title: label }, text)
    element.addEventListener('click', act)
    return element
  }

  const mark = index => {
    cards[here]?.classList.remove('here')
    here = index
    cards[here].classList.add('here')
    try { history.replaceState(null, '', '#' + cards[here].id) } catch { /* a sandboxed frame */ }
  }

  const show = (index, focus) => {
    mark(index)
    const entry = rows[here]
    const { layer, row } = entry
    const peaks = Math.floor(row.length / 8)
    const bar = make('div', { class: 'bar' },
      make('h2', {}, `${layer.name}, map ${row[0]} `, make('small', {}, `of ${many(layer.maps)}`)),
      button('←', 'Previous map', () => step(-1, 0)),
      button('→', 'Next map', () => step(1, 1)),
      button('Close', 'Close', () => view.close()))
    const body = peaks
      ? make('ol', { class: 'nine' }, ...Array.from({ length: peaks }, (_, i) => pair(entry, i)))
      : make('p', { class: 'none' }, 'This map is dead: it was not above zero anywhere in '
        + (data.searched ? `the ${many(data.searched)} images searched.` : 'the images searched.'))
    view.replaceChildren(bar, body)
    if (!view.open) view.showModal()
    view.scrollTop = 0
    bar.querySelectorAll('button')[focus ?? 2].focus()
  }

  const step = (by, focus) => {
    if (rows[here + by]) show(here + by, focus)
  }

  cards.forEach((card, index) => card.addEventListener('click', event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return
    event.preventDefault()
    show(index)
  }))

  // One stop for the tabulator key in each layer; the arrows go on from there.
  for (const card of document.querySelectorAll('.map:not(:first-child)')) card.tabIndex = -1

  const focus = index => {
    cards[index].focus({ preventScroll: true })
    cards[index].scrollIntoView({ block: 'nearest' })
  }
  view.addEventListener('close', () => focus(here))
  view.addEventListener('click', event => { if (event.target === view) view.close() })

  addEventListener('keydown', event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return
    if (view.open) {
      event.preventDefault()
      return step(by)
    }
    const card = document.activeElement?.closest('.map') ?? cards[here]
    const next = cards.indexOf(card) + by
    if (!card || !cards[next]) return
    event.preventDefault()
    mark(next)
    focus(next)
  })

  // A link to a map: the mark moves there, and so does the next arrow key.
  const arrive = () => {
    const index = cards.findIndex(card => '#' + card.id === location.hash)
    cards[here]?.classList.remove('here')
    if (index >= 0) mark(index)
  }
  addEventListener('hashchange', arrive)
  arrive()

  // While training goes on the page renews itself, but not under the reader's eyes.
  const renew = () => (view.open ? setTimeout(renew, 1000) : location.reload())
  if (data.refresh) setTimeout(renew, data.refresh * 1000)
})()
