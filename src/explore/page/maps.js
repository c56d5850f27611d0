// The chosen layer's maps as a grid. Only the tiles that are on the screen exist, so that a layer of four
// thousand maps scrolls as one of forty does.

import { $, make, many, press, short } from './dom.js'
import { colour, isSigned, mapPixels, put, rangeOf, scaleOfLayer, valueOf, viridis } from './draw.js'
import { mapsAddress, mapsHere } from './load.js'
import { isPublished, publishedUnit } from './published.js'
import { any, change, classOf, layerOf, listen, state } from './state.js'
import { pickUnit } from './unit.js'

const GAP = 8
const LABEL = 17

/** @type {number[]} The maps in the order shown. */
let order = []
let orderOf = ''
let viewOf = ''

/** @type {Map<number, HTMLElement>} Tiles by their place in the order. */
const tiles = new Map()
/** What a tile's pixels are of: a click changes marks alone. @type {WeakMap<HTMLElement, string>} */
const tileOf = new WeakMap()
let layout = { columns: 1, width: 1, height: 1 }

const arrange = () => {
  const maps = mapsHere()
  if (!maps) { order = []; return }
  const { peaks } = maps.head
  order = peaks.map((_, i) => i)
  if (state.firing) order = order.filter(i => peaks[i][0] > 0 || i === state.map)
  if (state.order === 'strength') order.sort((a, b) => peaks[b][0] - peaks[a][0] || a - b)
}

/** The map so many places further on in the order shown. */
export const neighbour = by => {
  if (!order.length) return null
  const at = order.indexOf(state.map)
  return order[at < 0 ? 0 : Math.min(Math.max(at + by, 0), order.length - 1)]
}

const measure = () => {
  const layer = layerOf(state.layer)
  const box = $('maps')
  const width = box.clientWidth - 2 * GAP
  if (!layer || width <= 0) return
  const single = layer.rows === 1 && layer.columns === 1
  const least = single ? 64 : 74
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)))
  const tile = (width - (columns - 1) * GAP) / columns
  layout = { columns, width: tile, height: (single ? 18 : tile * layer.rows / layer.columns) + LABEL }
  $('maps-inner').style.height = `${Math.ceil(order.length / columns) * (layout.height + GAP) + GAP}px`
}

const build = () => make('div', { class: 'tile', role: 'option' }, make('canvas', { 'aria-hidden': 'true' }), make('i', { class: 'spot' }), make('span', { class: 'label' }, make('b'), make('span')))

const fill = (tile, place) => {
  const maps = mapsHere()
  const map = order[place]
  const { rows, columns, peaks } = maps.head
  const [canvas, spot, label] = tile.children
  const row = Math.floor(place / layout.columns), column = place % layout.columns
  tile.style.transform = `translate(${GAP + column * (layout.width + GAP)}px, ${GAP + row * (layout.height + GAP)}px)`
  tile.style.width = `${layout.width}px`
  tile.dataset.map = map
  tile.id = `map-${map}`
  tile.setAttribute('aria-setsize', order.length)
  tile.setAttribute('aria-posinset', place + 1)
  tile.setAttribute('aria-selected', String(map === state.map))
  const name = classOf(state.layer, map)
  const published = publishedUnit(maps, map, state.network) !== null
  tile.toggleAttribute('data-published', published)
  tile.setAttribute('aria-label', `map ${map}${name ? `, ${name}` : ''}, peak ${short(peaks[map][0])} at y ${peaks[map][1]}, x ${peaks[map][2]}${published ? ', with its projection' : ''}`)
  if (name) tile.title = name
  else tile.removeAttribute('title')
  const single = rows === 1 && columns === 1
  canvas.style.height = `${layout.height - LABEL}px`
  const key = `${maps.of} ${map} ${state.ownScale}`
  if (tileOf.get(tile) === key) { /* the pixels are those */ } else if (single) {
    canvas.width = canvas.height = 1
    const context = canvas.getContext('2d')
    const high = rangeOf(maps, map, state.ownScale)
    context.fillStyle = `rgb(${colour(peaks[map][0], high).join(' ')})`
    context.fillRect(0, 0, 1, 1)
  } else put(canvas, mapPixels(maps, map, rangeOf(maps, map, state.ownScale)))
  tileOf.set(tile, key)
  label.children[0].textContent = map
  label.children[1].textContent = short(peaks[map][0])
  const marked = map === state.map && state.unit && !single
  spot.hidden = !marked
  if (marked) {
    const [w, h] = [layout.width / columns, (layout.height - LABEL) / rows]
    Object.assign(spot.style, { left: `${state.unit[1] * w}px`, top: `${state.unit[0] * h}px`, width: `${Math.max(w, 4)}px`, height: `${Math.max(h, 4)}px` })
  }
}

/** Tiles for what is on the screen; `all` where their content is new too. */
const show = all => {
  const box = $('maps')
  const maps = mapsHere()
  const pitch = layout.height + GAP
  const first = maps ? Math.max(0, Math.floor(box.scrollTop / pitch) - 1) * layout.columns : 0
  const last = maps ? Math.min(order.length, (Math.ceil((box.scrollTop + box.clientHeight) / pitch) + 1) * layout.columns) : 0
  const free = []
  for (const [place, tile] of tiles) {
    if (place >= first && place < last) continue
    free.push(tile)
    tiles.delete(place)
  }
  for (let place = first; place < last; place++) {
    let tile = tiles.get(place)
    if (tile && !all) continue
    if (!tile) {
      tile = free.pop()
      if (!tile) $('maps-inner').append(tile = build())
      tiles.set(place, tile)
    }
    fill(tile, place)
  }
  for (const tile of free) tile.remove()
  const chosen = [...tiles].find(([place]) => order[place] === state.map)
  if (chosen) box.setAttribute('aria-activedescendant', chosen[1].id)
  else box.removeAttribute('aria-activedescendant')
}

/** Scrolls the grid alone, and no further than it takes. */
const reveal = () => {
  const place = order.indexOf(state.map)
  if (place < 0) return
  const box = $('maps')
  const top = Math.floor(place / layout.columns) * (layout.height + GAP)
  if (top < box.scrollTop) box.scrollTop = top
  else if (top + layout.height + 2 * GAP > box.scrollTop + box.clientHeight) box.scrollTop = top + layout.height + 2 * GAP - box.clientHeight
}

const renderHead = () => {
  const layer = layerOf(state.layer)
  const maps = mapsHere()
  $('maps-title').textContent = layer ? layer.name : 'Maps'
  const firing = maps ? maps.head.peaks.filter(([value]) => value > 0).length : 0
  $('maps-facts').textContent = layer && maps ? `${many(firing)} of ${many(layer.maps)} maps fire` : ''
  $('maps-error').textContent = state.errors.maps ?? ''
  const shown = maps ? maps.head.peaks.filter((_, map) => publishedUnit(maps, map, state.network) !== null).length : 0
  $('maps-published').hidden = !shown
  $('maps-published').textContent = `${shown === 1 ? 'This map has its projection' : `These ${shown} maps have their projections`} here: a click opens ${shown === 1 ? 'it' : 'one'}. Of the others the map alone is published.`
  press($('order-strength'), state.order === 'strength')
  press($('order-number'), state.order === 'number')
  press($('only-firing'), state.firing)
  press($('own-scale'), state.ownScale)
  $('maps').setAttribute('aria-busy', String(!!state.image && state.maps?.of !== mapsAddress()))
  const scale = maps ? scaleOfLayer(maps) : 0
  const signed = !!maps && isSigned(maps)
  $('maps-low').textContent = !signed ? '0' : state.ownScale ? '−' : short(-scale)
  $('maps-high').textContent = !state.ownScale ? short(scale) : signed ? 'own magnitude of each' : 'own peak of each'
  const bar = $('maps-bar')
  if (bar.dataset.signed !== String(signed)) {
    bar.dataset.signed = String(signed)
    bar.width = 128
    bar.height = 1
    const context = bar.getContext('2d')
    for (let i = 0; i < 128; i++) {
      context.fillStyle = `rgb(${(signed ? colour((i - 63.5) / 63.5, 1) : viridis(i / 127)).join(' ')})`
      context.fillRect(i, 0, 1, 1)
    }
  }
}

const unitUnder = event => {
  const tile = event.target.closest?.('.tile')
  const maps = mapsHere()
  if (!tile || !maps) return null
  const map = Number(tile.dataset.map)
  const canvas = tile.firstChild
  const box = canvas.getBoundingClientRect()
  const { rows, columns, peaks } = maps.head
  const x = Math.floor((event.clientX - box.left) / box.width * columns), y = Math.floor((event.clientY - box.top) / box.height * rows)
  // Its label stands for the map, and so for its peak.
  return { map, unit: y >= 0 && y < rows && x >= 0 && x < columns ? [y, x] : [peaks[map][1], peaks[map][2]] }
}

const read = under => {
  const maps = mapsHere()
  $('reading').textContent = under && maps
    ? `map ${under.map}, y ${under.unit[0]}, x ${under.unit[1]}: ${short(valueOf(maps, under.map, ...under.unit))} (over the image: 0 to ${short(rangeOf(maps, under.map, true))})`
    : isPublished ? '' : 'Click any place of any map.'
}

export const startMaps = () => {
  const box = $('maps')
  read(null)
  box.addEventListener('scroll', () => show(false), { passive: true })
  box.addEventListener('click', event => {
    const under = unitUnder(event)
    if (under) pickUnit(under.map, under.unit, { push: true, click: true })
  })
  box.addEventListener('pointermove', event => {
    if (event.pointerType !== 'mouse') return
    const under = unitUnder(event)
    read(under)
    change({ hover: under?.map ?? null })
  })
  box.addEventListener('pointerleave', () => { read(null); change({ hover: null }) })
  $('order-strength').addEventListener('click', () => change({ order: 'strength' }))
  $('order-number').addEventListener('click', () => change({ order: 'number' }))
  $('only-firing').addEventListener('click', () => change({ firing: !state.firing }))
  $('own-scale').addEventListener('click', () => change({ ownScale: !state.ownScale }))
  new ResizeObserver(() => { measure(); show(true); reveal() }).observe(box)
  listen(changed => {
    if (!any(changed, 'network', 'net', 'layer', 'image', 'view', 'cover', 'fill', 'map', 'unit', 'maps', 'mode', 'order', 'firing', 'ownScale', 'errors')) return
    const maps = mapsHere()
    // The order stays while a square moves or the camera runs: a grid that is shuffled under the eyes cannot be read.
    if (state.mode !== 'crop') viewOf = String(state.view)
    const key = maps ? [state.net.checkpoint, state.layer, state.camera ? 'camera' : maps.image, viewOf, state.order, state.firing].join(' ') : ''
    if (key !== orderOf || (maps && state.map !== null && state.firing && !order.includes(state.map))) {
      const other = !orderOf.startsWith(`${state.net.checkpoint} ${state.layer} `)
      orderOf = key
      arrange()
      measure()
      if (other) box.scrollTop = 0
    }
    renderHead()
    show(true)
    if (any(changed, 'map', 'layer') || changed.has('maps') && !changed.has('cover')) reveal()
  })
}
