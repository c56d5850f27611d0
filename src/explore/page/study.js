// What tells the network a class: the maps of the chosen layer by their contribution to it, its images; and how the
// chosen map fires on the images of each class.

import * as api from './api.js'
import { PAPER, colours, sheet } from './chart.js'
import { $, button, make, many, percent, short } from './dom.js'
import { canvasOf, mapPixels, put, rangeOf } from './draw.js'
import { goTo, mapsHere } from './load.js'
import { Progress, isComplete } from './progress.js'
import { any, change, classOf, listen, state } from './state.js'
import { selectUnit } from './unit.js'

const MAPS = 8, CLASSES = 12
/** How many maps, and how many classes of the histogram, are listed. */
let mapsListed = MAPS, classesListed = CLASSES

const progress = { studied: new Progress('studied', api.study, isComplete, 1000), histogram: new Progress('histogram', api.study, isComplete, 1000) }

const address = () => (state.study === null || !state.layer ? null : api.classAt(state.net, state.layer, state.study))
const histogramAddress = () => (state.study === null || !state.layer || state.map === null ? null : api.histogramAt(state.net, state.layer, state.map))

/** An answer for the same, if of the last weights until the new ones have answered. */
const shownOf = (answer, of) => (answer && of && api.withoutVersion(answer.of) === api.withoutVersion(of) ? answer : null)

/** The answers, if they are of what is chosen. */
export const studyHere = () => (state.studied && state.studied.of === address() ? state.studied : null)
export const histogramHere = () => (state.histogram && state.histogram.of === histogramAddress() ? state.histogram : null)

/** Whether all that the study shows has come, or been refused. */
export const studyComplete = () => state.study === null
  || [[studyHere(), 'studied', address()], [histogramHere(), 'histogram', histogramAddress()]].every(([found, part, of]) => !of || state.errors[part] || (found && isComplete(found)))

export const openStudy = kind => { if (kind < state.network.classes.length) change({ study: kind }, { push: true }) }

export const toggleStudy = () => {
  if (state.study !== null) change({ study: null }, { push: true })
  else openStudy(state.classes?.classes[0]?.class ?? 0)
}

const nameOfClass = () => state.network.classes[state.study]

/** A tile of the present image, where that is known. */
const drawTile = (canvas, map) => {
  const maps = mapsHere()
  if (maps && map < maps.head.maps) put(canvas, mapPixels(maps, map, rangeOf(maps, map, state.ownScale)))
}

const visit = map => {
  const peak = mapsHere()?.head.peaks[map]
  if (peak) selectUnit(map, [peak[1], peak[2]], { push: true, click: true })
  else change({ map, unit: null }, { push: true })
}

const barOf = (contribution, most) => `${most > 0 ? Math.min(1, Math.abs(contribution) / most) * 100 : 0}%`

const mostOf = maps => maps.reduce((most, { contribution }) => Math.max(most, Math.abs(contribution)), 0)

const row = () => make('li', {}, make('button', { type: 'button', class: 'contribution', onclick: event => visit(Number(event.currentTarget.dataset.map)) },
  make('canvas', { class: 'tiny', 'aria-hidden': 'true' }), make('span', { class: 'name' }), make('span', { class: 'value number' }), make('span', { class: 'track', 'aria-hidden': 'true' }, make('i', { class: 'fill' }))))

const renderMaps = found => {
  const list = $('study-maps')
  const maps = found?.read ? found.maps : []
  const most = mostOf(maps)
  maps.slice(0, mapsListed).forEach(({ map, contribution }, i) => {
    if (!list.children[i]) list.append(row())
    const go = list.children[i].firstChild
    const [canvas, name, value, track] = go.children
    go.dataset.map = map
    go.dataset.contribution = contribution
    if (map === state.map) go.setAttribute('aria-current', 'true')
    else go.removeAttribute('aria-current')
    drawTile(canvas, map)
    const kind = classOf(state.layer, map)
    name.textContent = `map ${map}${kind ? `, ${kind}` : ''}`
    value.textContent = short(contribution)
    track.firstChild.style.width = barOf(contribution, most)
    go.classList.toggle('against', contribution < 0)
    go.setAttribute('aria-label', `Map ${map}${kind ? `, ${kind}` : ''}: contributes ${short(contribution)}. Go there.`)
  })
  while (list.children.length > Math.min(maps.length, mapsListed)) list.lastChild.remove()
  $('study-more').hidden = maps.length <= mapsListed
  $('study-more').textContent = `more of the ${many(maps.length)} maps`
}

const renderImages = found => {
  const list = $('study-images')
  const images = found?.images ?? []
  const key = images.map(({ id, probability }) => `${id} ${probability}`).join(',')
  if (list.dataset.key === key) return
  list.dataset.key = key
  list.replaceChildren(...images.map(({ id, probability }) => make('li', {}, make('button', { type: 'button', class: 'thumb', 'data-image': id, 'aria-label': `${id}, ${percent(probability)}. Show it.`, onclick: () => goTo(id) },
    make('img', { src: api.thumbAt(id), alt: '', loading: 'lazy', decoding: 'async', fetchpriority: 'low' }), make('span', {}, percent(probability))))))
}

const sum = counts => counts.reduce((total, count) => total + count, 0)

/** The mean of a class's images, by the middles of the bins. */
const meanOf = ({ counts }, edges) => {
  const total = sum(counts)
  return total ? counts.reduce((all, count, i) => all + count * (edges[i] + edges[i + 1]) / 2, 0) / total : 0
}

/** The class that is looked at, then the others as strongly as they make the map fire. */
const ordered = ({ classes, edges }) => {
  // The data may give another number or name to it than the network.
  const looked = shownOf(state.studied, address())?.data_class
  return classes.filter(({ counts }) => sum(counts)).map(entry => ({ ...entry, mean: meanOf(entry, edges), first: entry.class === looked }))
    .sort((a, b) => Number(b.first) - Number(a.first) || b.mean - a.mean)
}

const highest = classes => Math.max(1e-9, ...classes.map(({ counts }) => Math.max(...counts) / sum(counts)))

/** Bars of one class, as shares of its images. */
const bars = (context, { counts, mean, first }, edges, most, [width, height], palette) => {
  const total = sum(counts), low = edges[0], span = edges.at(-1) - low || 1
  context.fillStyle = palette.rule
  context.fillRect(0, height - 1, width, 1)
  context.fillStyle = first ? palette.accent : palette.quiet
  counts.forEach((count, i) => {
    const h = count / total / most * (height - 2)
    const x = (edges[i] - low) / span * width
    context.fillRect(x, height - 1 - h, Math.max(1, (edges[i + 1] - edges[i]) / span * width - 0.5), h)
  })
  context.fillStyle = palette.ink
  const at = (mean - low) / span * width
  context.beginPath()
  context.moveTo(at - 3.5, 0)
  context.lineTo(at + 3.5, 0)
  context.lineTo(at, 6)
  context.fill()
}

const rangeWords = (edges, most) => `Each from ${short(edges[0])} to ${short(edges.at(-1))} along, and to ${percent(most)} of its images upwards; the mark is the mean.`

const HEIGHT = 44

const renderHistogram = found => {
  const list = $('histogram')
  const all = found?.edges.length > 1 ? ordered(found) : []
  const shown = all.slice(0, classesListed)
  const most = highest(all)
  $('histogram-words').textContent = all.length ? rangeWords(found.edges, most) : ''
  $('histogram-more').hidden = all.length <= shown.length
  $('histogram-more').textContent = `all ${many(all.length)} classes`
  const palette = colours()
  shown.forEach((entry, i) => {
    if (!list.children[i]) list.append(make('li', {}, make('span', { class: 'name' }), make('span', { class: 'mean number' }), make('canvas', { role: 'img' })))
    const item = list.children[i]
    const [name, mean, canvas] = item.children
    item.dataset.class = entry.class
    item.dataset.mean = entry.mean
    item.classList.toggle('first', entry.first)
    name.textContent = entry.name
    mean.textContent = `mean ${short(entry.mean)}`
    const width = canvas.clientWidth
    if (width) bars(sheet(canvas, width, HEIGHT), entry, found.edges, most, [width, HEIGHT], palette)
    canvas.setAttribute('aria-label', `${entry.name}: ${many(sum(entry.counts))} images, mean ${short(entry.mean)}`)
  })
  while (list.children.length > shown.length) list.lastChild.remove()
}

/** The histograms as one picture, on paper. */
export const histogramPicture = () => {
  const found = histogramHere()
  if (!found || found.edges.length < 2) return null
  const all = ordered(found).slice(0, classesListed), most = highest(all)
  const columns = 3, [width, height] = [190, HEIGHT + 24], gap = 14
  const canvas = document.createElement('canvas')
  const context = sheet(canvas, columns * (width + gap) - gap, Math.ceil(all.length / columns) * height, 2)
  context.fillStyle = PAPER.paper
  context.fillRect(0, 0, canvas.width, canvas.height)
  all.forEach((entry, i) => {
    context.save()
    context.translate(i % columns * (width + gap), Math.floor(i / columns) * height)
    context.fillStyle = entry.first ? PAPER.accent : PAPER.ink
    context.fillText(entry.name, 0, 12, width)
    context.translate(0, 16)
    bars(context, entry, found.edges, most, [width, HEIGHT], PAPER)
    context.restore()
  })
  return canvas
}
export const histogramCaption = () => [`${state.layer}, map ${state.map}: its largest activation in each image, by class`, rangeWords(histogramHere().edges, highest(ordered(histogramHere())))]

/** The list of maps as one picture, on paper. */
export const studyPicture = () => {
  const found = studyHere()
  if (!found?.read) return null
  const maps = found.maps.slice(0, mapsListed), most = mostOf(found.maps), side = 40, pitch = 46, width = 480
  const canvas = document.createElement('canvas')
  const context = sheet(canvas, width, maps.length * pitch, 1)
  context.fillStyle = PAPER.paper
  context.fillRect(0, 0, width, canvas.height)
  context.imageSmoothingEnabled = false
  const shown = mapsHere()
  maps.forEach(({ map, contribution }, i) => {
    const y = i * pitch
    if (shown) context.drawImage(canvasOf(mapPixels(shown, map, rangeOf(shown, map, state.ownScale))), 0, y, side, side)
    context.fillStyle = PAPER.ink
    context.fillText(`map ${map}`, side + 10, y + 16)
    context.textAlign = 'right'
    context.fillText(short(contribution), width, y + 16)
    context.textAlign = 'left'
    context.fillStyle = PAPER.rule
    context.fillRect(side + 10, y + 24, width - side - 10, 8)
    context.fillStyle = contribution < 0 ? PAPER.second : PAPER.accent
    context.fillRect(side + 10, y + 24, (width - side - 10) * Math.abs(contribution) / (most || 1), 8)
  })
  return canvas
}
export const studyCaption = () => [`What tells the network ${nameOfClass()}: maps of ${state.layer}`,
  `contribution to the class's score: activation times gradient, mean over ${many(studyHere().read)} images; tiles of the image shown`]

/** @type {string[] | null} */
let choiceOf = null

const renderChoice = () => {
  const select = $('study-class'), { classes } = state.network
  if (choiceOf !== classes) {
    choiceOf = classes
    select.replaceChildren(...classes.map((name, i) => make('option', { value: i }, name)))
  }
  select.value = state.study
}

const progressWords = found => {
  if (!found?.total) return ''
  if (!isComplete(found)) return `after ${many(found.done)} of ${many(found.total)} images`
  const unread = found.done - found.read
  return `over ${many(found.read)} of its images${unread ? `; ${many(unread)} could not be read` : ''}`
}

const render = () => {
  const open = state.study !== null
  $('class-study').hidden = !open
  document.body.classList.toggle('studying', open)
  if (!open) return
  renderChoice()
  const found = studyHere()
  const shown = shownOf(state.studied, address())
  $('study-title').textContent = nameOfClass()
  $('study-of').textContent = `Maps of ${state.layer} that matter most`
  $('study-maps').setAttribute('aria-busy', String(!found))
  $('study-error').textContent = state.errors.studied ?? found?.failed ?? ''
  const going = !!found && !isComplete(found)
  $('study-bar').hidden = !going
  $('study-bar').max = found?.total || 1
  $('study-bar').value = found?.done ?? 0
  $('study-progress').textContent = progressWords(found)
  renderMaps(shown)
  renderImages(shown)
  $('histogram-title').textContent = state.map === null ? '' : `${state.layer}, map ${state.map}, by class`
  const histogram = histogramHere()
  $('histogram').setAttribute('aria-busy', String(!histogram))
  $('histogram-error').textContent = state.errors.histogram ?? histogram?.failed ?? ''
  renderHistogram(shownOf(state.histogram, histogramAddress()))
}

export const startStudy = () => {
  $('open-study').addEventListener('click', toggleStudy)
  $('study-close').addEventListener('click', toggleStudy)
  $('study-class').addEventListener('change', event => openStudy(Number(event.target.value)))
  $('study-more').addEventListener('click', () => { mapsListed *= 2; render() })
  $('histogram-more').addEventListener('click', () => { classesListed = Infinity; render() })
  new ResizeObserver(render).observe($('histogram'))
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { if (state.network) render() })
  listen(changed => {
    if (any(changed, 'network', 'net', 'study', 'layer', 'map')) {
      if (any(changed, 'network', 'study', 'layer')) [mapsListed, classesListed] = [MAPS, CLASSES]
      progress.studied.want(address())
      progress.histogram.want(histogramAddress())
    }
    if (changed.has('network')) $('open-study').hidden = !state.network.classes.length
    if (any(changed, 'network', 'net', 'study', 'layer', 'map', 'maps', 'studied', 'histogram', 'errors', 'ownScale')) render()
  })
}
