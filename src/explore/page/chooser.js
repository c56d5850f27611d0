// The data's images: a grid with classes and search in a dialog, and the next and previous of what it lists.

import * as api from './api.js'
import { $, button, make, many, press } from './dom.js'
import { goTo } from './load.js'
import { isPublished } from './published.js'
import { listen, state } from './state.js'

/** As many as are asked for at a time; all that a published page has. */
const PAGE = isPublished ? Infinity : 60

/** What is listed; `images` is as much of it as has come, from its beginning. */
let list = { split: '', class: null, search: '', total: 0, images: [] }
const lane = new api.Lane()

const nothingSought = () => list.class === null && !list.search

/** The next page of the list. @returns {Promise<boolean>} whether there was more */
const more = () => new Promise(resolve => {
  const to = list
  if (to.images.length && to.images.length >= to.total) return resolve(false)
  lane.ask(async signal => {
    try {
      const found = await api.images({ ...to, from: to.images.length, count: PAGE }, signal)
      to.total = found.total
      to.images.push(...found.images)
      $('chooser-error').textContent = ''
      resolve(found.images.length > 0)
    } catch (error) {
      if (!signal.aborted) $('chooser-error').textContent = error.message
      resolve(false)
    }
    if (to === list) render()
  })
})

const restart = patch => {
  list = { ...list, ...patch, total: 0, images: [] }
  $('thumbs').replaceChildren()
  $('thumbs').scrollTop = 0
  more()
}

const pick = image => {
  $('chooser').close()
  goTo(image.id, image)
}

const thumb = image => {
  const kind = state.network.data_classes?.[image.class] ?? ''
  const go = make('button', { type: 'button', class: 'thumb', 'data-image': image.id, 'aria-label': `${image.id}, ${kind}`, title: image.name, onclick: () => pick(image) },
    make('img', { src: api.thumbAt(image.id), alt: '', onerror: ({ target }) => target.replaceWith(make('i', { class: 'unreadable' }, 'cannot be read')), loading: 'lazy', decoding: 'async', fetchpriority: 'low' }), make('span', {}, kind || image.name))
  if (image.id === state.image) go.setAttribute('aria-current', 'true')
  return go
}

const render = () => {
  const box = $('thumbs')
  for (let i = box.children.length; i < list.images.length; i++) box.append(thumb(list.images[i]))
  $('chooser-count').textContent = `${many(list.total)} image${list.total === 1 ? '' : 's'}`
  for (const entry of $('splits').children) press(entry, entry.dataset.split === list.split)
  // On a tall screen one page of them leaves nothing to scroll.
  if ($('chooser').open && box.scrollHeight <= box.clientHeight && list.images.length < list.total) setTimeout(more)
}

export const openChooser = () => {
  if (!state.network.splits.length) return
  $('thumbs').replaceChildren()
  $('chooser').showModal()
  if (list.images.length) {
    render()
    $('thumbs').querySelector('[aria-current]')?.scrollIntoView({ block: 'center' })
  } else restart({})
}

/** The next (or previous) image of the list; of the whole split where nothing is sought. */
export const stepImage = async by => {
  if (!state.network.splits.length) return
  const [split, number] = (state.image ?? '').split('/')
  const known = state.network.splits.find(s => s.name === split)
  if (nothingSought() && known && !isPublished) {
    const next = Number(number) + by
    if (next >= 0 && next < known.count) goTo(`${split}/${next}`)
    return
  }
  if (!list.images.length) await more()
  let at = list.images.findIndex(image => image.id === state.image)
  if (at < 0) at = by > 0 ? -1 : 0
  if (at + by >= list.images.length && list.images.length < list.total) await more()
  const next = list.images[at + by]
  if (next) goTo(next.id, next)
}

const prepare = () => {
  const { splits, data_classes: classes } = state.network
  $('data-images').hidden = !splits.length
  if (!splits.length) return
  if (list.split) return
  list.split = splits[0].name
  $('splits').replaceChildren(...splits.map(split => button(`${split.name} (${many(split.count)})`, { 'data-split': split.name, onclick: () => restart({ split: split.name }) })))
  $('splits').hidden = splits.length < 2
  $('class-wanted').append(...(classes ?? []).map((name, i) => make('option', { value: i }, name)))
  $('class-wanted').hidden = !classes?.length
}

export const startChooser = () => {
  $('choose').addEventListener('click', openChooser)
  $('previous').addEventListener('click', () => stepImage(-1))
  $('next').addEventListener('click', () => stepImage(1))
  $('chooser-close').addEventListener('click', () => $('chooser').close())
  $('chooser').addEventListener('click', event => { if (event.target === $('chooser')) $('chooser').close() })
  let timer = 0
  $('search').addEventListener('input', event => {
    clearTimeout(timer)
    timer = setTimeout(() => restart({ search: event.target.value.trim() }), 200)
  })
  $('class-wanted').addEventListener('change', event => restart({ class: event.target.value === '' ? null : Number(event.target.value) }))
  const box = $('thumbs')
  box.addEventListener('scroll', () => {
    if (!lane.busy && box.scrollTop + box.clientHeight > box.scrollHeight - 600) more()
  }, { passive: true })
  listen(changed => { if (changed.has('network')) prepare() })
}
