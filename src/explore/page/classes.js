// What the network thinks: its five classes, and those of the network beside it.

import { $, button, make, percent } from './dom.js'
import { classesAddress, otherClassesAddress } from './load.js'
import { isPublished } from './published.js'
import { nameOf } from './nets.js'
import { any, listen, state } from './state.js'
import { openStudy } from './study.js'
import * as api from './api.js'

/** Rows with bars; `name` makes the element that a class's name is in, `open` is what it was with nothing covered. */
const fill = (list, classes, name, open) => {
  const label = state.info ? state.network.data_classes?.[state.info.class] : null
  classes.forEach((entry, i) => {
    let row = list.children[i]
    if (!row) {
      row = make('li', {}, make('span', { class: 'name' }, name()), make('span', { class: 'share' }), make('span', { class: 'track', 'aria-hidden': 'true' }, make('i', { class: 'fill' }), make('i', { class: 'tick' })))
      list.append(row)
    }
    const [named, share, track] = row.children
    row.dataset.class = entry.class
    row.dataset.probability = entry.probability
    named.firstChild.textContent = entry.name
    row.classList.toggle('label', label === entry.name)
    row.title = label === entry.name ? "The data's own label" : ''
    const before = open?.find(o => o.class === entry.class)?.probability
    share.textContent = percent(entry.probability)
    track.children[0].style.width = `${entry.probability * 100}%`
    track.children[1].hidden = before === undefined
    if (before !== undefined) track.children[1].style.left = `${before * 100}%`
  })
  while (list.children.length > classes.length) list.lastChild.remove()
}

const renderOther = () => {
  const { compared, otherClasses: found } = state
  $('thoughts').classList.toggle('two', !!compared)
  $('compare-thoughts').hidden = !compared
  $('classes-of').hidden = !compared
  if (!compared) return
  $('classes-of').textContent = nameOf(state.net)
  $('compare-classes-of').textContent = nameOf(compared)
  const list = $('compare-classes')
  list.setAttribute('aria-busy', String(found?.of !== otherClassesAddress()))
  fill(list, found?.classes ?? [], () => make('span'), null)
}

const render = () => {
  renderOther()
  const list = $('classes')
  const found = state.classes
  list.setAttribute('aria-busy', String(!!state.image && found?.of !== classesAddress()))
  $('classes-error').textContent = state.errors.classes ?? ''
  if (!found) return list.replaceChildren()
  if (!state.network.classes.length) $('classes-error').textContent ||= 'This network has no classes.'
  const open = state.cover && state.open?.of === api.classesAt({ ...state, cover: null }) ? state.open.classes : null
  fill(list, found.classes, () => isPublished ? make('span') : button('', { class: 'link', title: 'What tells the network this class', onclick: event => openStudy(Number(event.target.closest('li').dataset.class)) }), open)
  $('classes-key').hidden = !open
}

export const startClasses = () => listen(changed => {
  if (any(changed, 'classes', 'open', 'cover', 'info', 'image', 'view', 'fill', 'errors', 'net', 'runs', 'compared', 'otherClasses', 'layer', 'map')) render()
})
