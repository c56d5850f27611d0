// What the network thinks: its five classes.

import { $, make, percent } from './dom.js'
import { classesAddress } from './load.js'
import { any, listen, state } from './state.js'
import * as api from './api.js'

const render = () => {
  const list = $('classes')
  const found = state.classes
  list.setAttribute('aria-busy', String(!!state.image && found?.of !== classesAddress()))
  $('classes-error').textContent = state.errors.classes ?? ''
  if (!found) return list.replaceChildren()
  if (!state.network.classes.length) $('classes-error').textContent ||= 'This network has no classes.'
  const open = state.cover && state.open?.of === api.classesAt({ ...state, cover: null }) ? state.open.classes : null
  const label = state.info ? state.network.data_classes?.[state.info.class] : null
  found.classes.forEach((entry, i) => {
    let row = list.children[i]
    if (!row) {
      row = make('li', {}, make('span', { class: 'name' }), make('span', { class: 'share' }), make('span', { class: 'track', 'aria-hidden': 'true' }, make('i', { class: 'fill' }), make('i', { class: 'tick' })))
      list.append(row)
    }
    const [name, share, track] = row.children
    row.dataset.class = entry.class
    row.dataset.probability = entry.probability
    name.textContent = entry.name
    row.classList.toggle('label', label === entry.name)
    row.title = label === entry.name ? "The data's own label" : ''
    const before = open?.find(o => o.class === entry.class)?.probability
    share.textContent = percent(entry.probability)
    track.children[0].style.width = `${entry.probability * 100}%`
    track.children[1].hidden = before === undefined
    if (before !== undefined) track.children[1].style.left = `${before * 100}%`
  })
  while (list.children.length > found.classes.length) list.lastChild.remove()
  $('classes-key').hidden = !open
}

export const startClasses = () => listen(changed => {
  if (any(changed, 'classes', 'open', 'cover', 'info', 'image', 'view', 'fill', 'errors')) render()
})
