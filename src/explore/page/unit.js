// One unit: its map enlarged, its receptive field, and its projections by the rules and weights asked for.

import { $, button, make, press, saving, short, whole } from './dom.js'
import { isSigned, mapPixels, projectionPixels, put, rangeOf, valueOf } from './draw.js'
import { GAINS } from './link.js'
import { fieldHere, inputAddress, mapsHere, otherMapsAddress, otherMapsHere, pictureAddress, pictureKeys } from './load.js'
import { neighbour } from './maps.js'
import { counterpart, nameOf as nameOfNet, unitBack } from './nets.js'
import { publishedUnit } from './published.js'
import { any, change, classOf, fieldOf, layerOf, listen, state } from './state.js'
import { clicked, drawn } from './timing.js'

/**
 * Chooses a unit. `click` is for a single act of the reader, whose time until the picture is measured.
 * @param {number} map
 * @param {number[]} unit y, x
 * @param {{push?: boolean, follow?: boolean, click?: boolean}} how
 */
export const selectUnit = (map, unit, how = { push: true }) => {
  if (how.click) clicked()
  change({ map, unit }, how)
  if (how.click) renderPictures()
}

/** Chooses a unit that is pointed at. A published page has one projection of a map, so that the map is pointed at. */
export const pickUnit = (map, unit, how) => {
  if (unit) selectUnit(map, publishedUnit(mapsHere(), map, state.network) ?? unit, how)
}

export const moveUnit = (dx, dy, again) => {
  const layer = layerOf(state.layer)
  if (!layer || state.map === null || !state.unit) return
  const [y, x] = state.unit
  const next = [y + dy, x + dx]
  if (next[0] < 0 || next[1] < 0 || next[0] >= layer.rows || next[1] >= layer.columns) return
  // A key held down is one walk: one entry of the history, and requests that follow it.
  selectUnit(state.map, next, again ? { follow: true } : { push: true, click: true })
}

/** The map's strongest unit in this image. */
export const goToPeak = () => {
  const maps = mapsHere()
  if (maps && state.map !== null) selectUnit(state.map, [maps.head.peaks[state.map][1], maps.head.peaks[state.map][2]], { push: true, click: true })
}

/** Another map, at its strongest place. */
export const stepMap = (by, again) => {
  const map = neighbour(by)
  const maps = mapsHere()
  if (map === null || map === state.map || !maps) return
  selectUnit(map, [maps.head.peaks[map][1], maps.head.peaks[map][2]], again ? { follow: true } : { push: true, click: true })
}

export const stepRule = rule => { if (rule) change({ rule, all: false }) }
export const toggleRandom = () => change({ random: !state.random })
export const stepGain = by => {
  const gain = GAINS[Math.min(Math.max(GAINS.indexOf(state.gain) + by, 0), GAINS.length - 1)]
  change({ gain })
}

/** The pictures wanted, each with what has come for it, and whether that is of the present state. */
export const pictures = () => pictureKeys().map(wanted => {
  const missing = wanted.kind === 'compared' && counterpart()
  // That network has no such unit: this is all that will come.
  if (missing && !missing.unit && missing.sentence) return { ...wanted, picture: { of: null, refused: missing.sentence }, current: true }
  const picture = state.pictures[wanted.key] ?? null
  return { ...wanted, picture, current: !!picture && picture.of === pictureAddress(wanted) }
})

const exactly = kind => pictures().find(p => p.current && p.kind === kind && p.picture.head)?.picture.head.activation

/** The activation as exactly as it is known. */
export const activation = () => {
  const exact = exactly('trained')
  if (exact !== undefined) return exact
  const maps = mapsHere()
  return maps && state.map !== null && state.unit ? valueOf(maps, state.map, ...state.unit) : null
}

/** The compared network's. */
export const otherActivation = () => {
  const exact = exactly('compared')
  if (exact !== undefined) return exact
  const maps = otherMapsHere(), there = counterpart()
  return maps && there?.unit && maps.of === otherMapsAddress() ? valueOf(maps, there.map, ...there.unit) : null
}

/** The words above a picture. */
export const nameOf = ({ rule, kind }) => {
  if (kind === 'random') return `${rule}, untrained`
  if (state.compared) return `${rule}, ${nameOfNet(kind === 'compared' ? state.compared : state.net)}`
  return state.random ? `${rule}, trained` : rule
}

/**
 * One scale for trained and untrained weights of a rule, which are there to be compared; for all that is shown, if it
 * is asked for.
 */
export const scaleOf = (entry, all) => Math.max(0, ...all
  .filter(p => p.picture?.head && (state.shared || p.rule === entry.rule && (p.kind === 'compared') === (entry.kind === 'compared')))
  .map(p => p.picture.head.scale))

/** The words under a picture: what full white and full black stand for, and the gain. */
export const rangeText = scale => (scale > 0 ? `± ${short(scale / state.gain)}` : 'all zero')

const figure = key => {
  const element = make('figure', { 'data-picture': key },
    make('div', { class: 'frame' }, make('canvas', { role: 'img' }), make('p', { class: 'instead', hidden: true })),
    make('figcaption', {}, make('b', { class: 'what' }), make('span', { class: 'text' }, make('span', { class: 'range' }), make('span', { class: 'gain' })), saving(key, `this picture (${key})`)))
  return element
}

const drawnOf = new WeakMap()

/** Whether cutting makes anything larger: not where the receptive field is as large as the image. */
const cuts = () => {
  const layer = layerOf(state.layer), { rows, columns } = state.network.input
  return state.cut && !!layer && layer.field[0] < columns && layer.field[1] < rows
}
const cutTo = field => (cuts() ? field : null)

const renderPictures = () => {
  const box = $('pictures')
  const all = state.image && state.map !== null ? pictures() : []
  // Beside all rules there is no room for the image; its receptive field is drawn on the stage anyway.
  const photo = !state.all
  const keys = all.length ? [...(photo ? ['photo'] : []), ...all.map(p => p.key)] : []
  if (box.dataset.keys !== keys.join(' ')) {
    box.dataset.keys = keys.join(' ')
    const before = new Map([...box.children].map(child => [child.dataset.picture, child]))
    box.replaceChildren(...keys.map(key => before.get(key) ?? figure(key)))
    const rules = state.all ? state.network.rules.length : 1
    box.dataset.layout = state.all ? 'rules' : keys.length > 3 ? 'four' : keys.length > 2 ? 'three' : 'two'
    box.style.setProperty('--rules', rules)
  }
  if (!all.length) return
  let complete = true
  all.forEach((entry, i) => {
    const element = box.children[i + (photo ? 1 : 0)]
    const [holder, caption] = element.children
    const [canvas, instead] = holder.children
    element.setAttribute('aria-busy', String(!entry.current))
    complete &&= entry.current
    caption.querySelector('.what').textContent = nameOf(entry)
    const { picture } = entry
    const gain = caption.querySelector('.gain')
    gain.hidden = state.gain === 1 || !picture?.head
    caption.querySelector('.saves').hidden = !picture?.head
    gain.textContent = `gain ${state.gain}`
    if (!picture) {
      // Nothing has come yet: grey, which is zero.
      put(canvas, new ImageData(new Uint8ClampedArray([128, 128, 128, 255]), 1, 1))
      caption.querySelector('.range').textContent = ''
      instead.hidden = true
      return
    }
    canvas.hidden = !!picture.refused
    instead.hidden = !picture.refused
    if (picture.refused) {
      instead.textContent = picture.refused
      caption.querySelector('.range').textContent = ''
      return
    }
    const scale = scaleOf(entry, all)
    // Another network's unit: how strongly that fires is part of the comparison.
    caption.querySelector('.range').textContent = rangeText(scale) + (entry.kind === 'random' ? `, activation ${short(picture.head.activation)}` : '')
    canvas.setAttribute('aria-label', `Projection of the unit by ${nameOf(entry)}, black to white ${rangeText(scale)}, zero is grey`)
    const part = cutTo(picture.head.field)
    const key = [picture.of, scale, state.gain, part].join(' ')
    if (drawnOf.get(canvas) !== key) {
      put(canvas, projectionPixels(picture, scale, state.gain, part))
      drawnOf.set(canvas, key)
      canvas.classList.toggle('tiny', canvas.width < 120)
    }
  })
  if (photo) renderPhoto(box.children[0])
  if (complete) drawn()
}

/** The image within the receptive field, beside the projection of it. */
const renderPhoto = element => {
  const [holder, caption] = element.children
  const canvas = holder.firstChild
  const field = fieldHere()
  const cut = cuts()
  caption.querySelector('.what').textContent = cut ? 'receptive field' : 'image'
  caption.querySelector('.gain').hidden = true
  element.setAttribute('aria-busy', String(!state.input || state.input.of !== inputAddress()))
  if (!state.input || (cut && !field)) return
  const { rows, columns } = state.network.input
  const [x0, y0, x1, y1] = cut ? field : [0, 0, columns, rows]
  caption.querySelector('.range').textContent = `${x1 - x0} × ${y1 - y0}`
  canvas.setAttribute('aria-label', cut ? 'The image within the receptive field' : 'The image')
  const key = [state.input.of, x0, y0, x1, y1].join(' ')
  if (drawnOf.get(canvas) === key) return
  drawnOf.set(canvas, key)
  canvas.width = Math.max(1, x1 - x0)
  canvas.height = Math.max(1, y1 - y0)
  canvas.classList.toggle('tiny', canvas.width < 120)
  const context = canvas.getContext('2d')
  context.fillStyle = 'rgb(128 128 128)'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.drawImage(state.input.bitmap, -x0, -y0)
}

const renderMap = () => {
  const maps = mapsHere()
  const layer = layerOf(state.layer)
  const canvas = $('map-large'), spot = $('map-spot')
  const here = maps && state.map !== null && state.map < maps.head.maps
  const single = layer && layer.rows === 1 && layer.columns === 1
  $('map-figure').hidden = !here || single
  $('unit-title').textContent = state.map === null || !layer ? 'Unit' : `${layer.name}, map ${state.map}`
  $('unit-place').textContent = state.unit && !single ? `y ${state.unit[0]}, x ${state.unit[1]}` : layer && state.map !== null ? classOf(layer.name, state.map) ?? '' : ''
  const field = fieldHere()
  $('unit-field').textContent = field ? `x ${whole(field[0])} to ${whole(field[2])}, y ${whole(field[1])} to ${whole(field[3])}` : layer ? `${fieldOf(layer)} pixels` : ''
  const value = activation()
  $('activation').textContent = value === null ? '' : short(value)
  $('activation').dataset.value = value ?? ''
  $('overlay').hidden = !!single
  $('peak').textContent = !here ? '' : single ? short(maps.head.peaks[state.map][0]) : `${short(maps.head.peaks[state.map][0])} at y ${maps.head.peaks[state.map][1]}, x ${maps.head.peaks[state.map][2]}`
  $('unit-error').textContent = state.errors.unit ?? ''
  if (!here || single) return
  const high = mapRange()
  put(canvas, mapPixels(maps, state.map, high))
  canvas.setAttribute('aria-label', `Map ${state.map} of ${layer.name}, ${layer.rows} by ${layer.columns}. Click or use the arrow keys to choose a unit.`)
  $('map-range').textContent = rangeWords(maps, high)
  mark(spot, state.unit, layer)
}

const rangeWords = (maps, high) => `${isSigned(maps) ? short(-high) : 0} to ${short(high)}`

const mark = (spot, unit, layer) => {
  spot.hidden = !unit
  if (unit) Object.assign(spot.style, { left: `${unit[1] / layer.columns * 100}%`, top: `${unit[0] / layer.rows * 100}%`, width: `${100 / layer.columns}%`, height: `${100 / layer.rows}%` })
}

/** The end of the enlarged map's scale; `other` is the compared network's. One for both, if that is asked for. */
const mapRange = (other = false) => {
  const maps = mapsHere(), there = otherMapsHere(), map = counterpart()?.map ?? null
  const ranges = [
    ...(maps && (!other || state.shared) ? [rangeOf(maps, state.map, state.ownScale)] : []),
    ...(state.compared && there && map !== null && (other || state.shared) ? [rangeOf(there, map, state.ownScale)] : []),
  ]
  return Math.max(0, ...ranges)
}

/** The map of the compared network beside the enlarged one, and its unit's activation. */
const renderOtherMap = () => {
  const { compared } = state
  const there = counterpart(), maps = otherMapsHere()
  const single = !!there?.layer && there.layer.rows === 1 && there.layer.columns === 1
  document.querySelector('.enlarged').classList.toggle('two', !!compared)
  const shown = !!compared && !!maps && there?.map !== null && !single
  $('compare-map-figure').hidden = !shown
  $('compare-fact').hidden = !compared
  $('map-of').hidden = !compared
  if (!compared) {
    $('activation-of').textContent = 'Activation'
    return
  }
  $('map-of').textContent = nameOfNet(state.net)
  $('activation-of').textContent = `Activation, ${nameOfNet(state.net)}`
  $('compare-activation-of').textContent = `Activation, ${nameOfNet(compared)}`
  const value = otherActivation()
  $('compare-activation').textContent = value === null ? '' : short(value)
  $('compare-activation').dataset.value = value ?? ''
  if (!shown) return
  const canvas = $('compare-map'), high = mapRange(true)
  $('compare-map-of').textContent = nameOfNet(compared)
  put(canvas, mapPixels(maps, there.map, high))
  canvas.setAttribute('aria-busy', String(maps.of !== otherMapsAddress()))
  canvas.setAttribute('aria-label', `Map ${there.map} of ${there.layer.name} of the compared network, ${there.layer.rows} by ${there.layer.columns}`)
  $('compare-map-range').textContent = rangeWords(maps, high)
  mark($('compare-spot'), there.unit, there.layer)
}

const renderControls = () => {
  const { network } = state
  const rules = $('rules')
  if (rules.children.length !== network.rules.length) {
    rules.replaceChildren(...network.rules.map((rule, i) => button(rule, { 'data-rule': rule, 'aria-keyshortcuts': i < 9 ? String(i + 1) : null, title: i < 9 ? `Key ${i + 1}` : null, onclick: () => stepRule(rule) })))
    if (network.rules.length > 1) rules.append(button('all', { id: 'rules-all', 'aria-keyshortcuts': 'a', title: 'All rules side by side. Key A', onclick: () => change({ all: !state.all }) }))
  }
  for (const entry of rules.children) press(entry, entry.id === 'rules-all' ? state.all : !state.all && entry.dataset.rule === state.rule)
  press($('random'), state.random)
  press($('shared'), state.shared)
  press($('cut'), state.cut)
  $('cut').disabled = state.cut && !cuts()
  press($('overlay'), state.overlay)
  $('shared').hidden = !state.all && !state.random && !state.compared
  $('gain').textContent = state.gain
  $('gain').classList.toggle('turned', state.gain !== 1)
  $('gain-less').disabled = state.gain === GAINS[0]
  $('gain-more').disabled = state.gain === GAINS.at(-1)
}

/** The unit under the pointer, on the enlarged map of a layer. */
const unitUnder = (event, layer) => {
  const box = event.currentTarget.getBoundingClientRect()
  const x = Math.floor((event.clientX - box.left) / box.width * layer.columns), y = Math.floor((event.clientY - box.top) / box.height * layer.rows)
  return x >= 0 && y >= 0 && x < layer.columns && y < layer.rows ? [y, x] : null
}

const pick = (event, how) => pickUnit(state.map, unitUnder(event, layerOf(state.layer)), how)

export const startUnit = () => {
  const canvas = $('map-large')
  canvas.addEventListener('pointerdown', event => {
    if (event.button !== 0) return
    canvas.setPointerCapture(event.pointerId)
    pick(event, { push: true, click: true })
  })
  canvas.addEventListener('pointermove', event => { if (canvas.hasPointerCapture(event.pointerId)) pick(event, { follow: true }) })
  $('compare-map').addEventListener('click', event => {
    const unit = unitUnder(event, counterpart().layer)
    if (unit) selectUnit(state.map, unitBack(unit), { push: true, click: true })
  })
  $('peak').addEventListener('click', goToPeak)
  $('random').addEventListener('click', toggleRandom)
  $('shared').addEventListener('click', () => change({ shared: !state.shared }))
  $('cut').addEventListener('click', () => change({ cut: !state.cut }))
  $('overlay').addEventListener('click', () => change({ overlay: !state.overlay }))
  $('gain-less').addEventListener('click', () => stepGain(-1))
  $('gain-more').addEventListener('click', () => stepGain(1))
  listen(changed => {
    if (any(changed, 'network', 'layer', 'rule', 'all', 'random', 'compared', 'shared', 'cut', 'overlay', 'gain')) renderControls()
    const moved = any(changed, 'network', 'net', 'runs', 'networks', 'compared', 'image', 'view', 'cover', 'fill', 'layer', 'map', 'unit')
    if (moved || any(changed, 'pictures', 'rule', 'all', 'random', 'shared', 'cut', 'gain', 'input', 'top')) renderPictures()
    if (moved || any(changed, 'maps', 'otherMaps', 'pictures', 'ownScale', 'errors', 'top', 'shared')) renderMap()
    if (moved || any(changed, 'maps', 'otherMaps', 'pictures', 'ownScale', 'shared')) renderOtherMap()
  })
}
