// The chosen map's nine strongest places over the data: patches beside projections.

import * as api from './api.js'
import { $, make, many, short } from './dom.js'
import { topAddress, topOnScreen } from './load.js'
import { isPublished } from './published.js'
import { any, change, listen, state } from './state.js'

/** Those of the chosen map, if of the last weights until the new ones have answered. */
const here = () => {
  const of = topAddress()
  return state.top && of && api.withoutVersion(state.top.of) === api.withoutVersion(of) ? state.top : null
}

const visit = peak => change({ image: peak.id, info: null, view: null, cover: null, unit: [peak.y, peak.x] }, { push: true })

/** Such a picture is made when it is asked for, and the server may be busy, or have other weights: once more, a little later. */
const again = event => {
  const image = event.target
  if (isPublished) return
  api.mayBeOutdated()
  if (image.src.endsWith('&again=1')) return
  setTimeout(() => { if (image.isConnected) image.src += '&again=1' }, 1000)
}

const item = (peak, i) => {
  const picture = what => make('img', { src: api.fieldAt(state.net, state.layer, state.map, peak, what), alt: '', loading: 'lazy', decoding: 'async', fetchpriority: 'low', onerror: again })
  const here = api.hasImage(peak.id)
  const label = `Strongest ${i + 1}: ${short(peak.value)} in ${peak.id} at y ${peak.y}, x ${peak.x}. ${here ? 'Go there.' : 'The image is not published.'}`
  return make('li', {}, make('button', { type: 'button', class: 'peak', 'data-peak': i, 'data-image': peak.id, 'aria-label': label, title: `${peak.id}, y ${peak.y}, x ${peak.x}${here ? '' : '; this image is not published'}`, disabled: !here, onclick: () => visit(peak) },
    picture('photo'), picture('projection'), make('span', {}, short(peak.value))))
}

const render = () => {
  const found = here()
  const list = $('top-list')
  list.setAttribute('aria-busy', String(!!found && found.of !== topAddress()))
  $('top-error').textContent = state.errors.top ?? found?.failed ?? ''
  $('top').hidden = !state.network?.splits.length
  $('top').querySelector('.saves').hidden = !found?.peaks.length
  const words = !found ? '' : !found.total ? 'There is no data to search.'
    : found.done < found.total ? `after ${many(found.done)} of ${many(found.total)} images`
      : `of ${many(found.total)} images`
  $('top-progress').textContent = words
  $('top-bar').hidden = !found || found.done >= found.total
  if (found?.total) {
    $('top-bar').max = found.total
    $('top-bar').value = found.done
  }
  const key = found ? found.peaks.map(p => [p.id, p.y, p.x, p.value]).join(' ') + found.of : ''
  if (list.dataset.key === key) return
  list.dataset.key = key
  list.replaceChildren(...(found?.peaks ?? []).map(item))
  $('top-none').hidden = !found || found.peaks.length > 0 || found.total === 0
  $('top-none').textContent = found && found.done >= found.total ? 'This map was not above zero anywhere in the data.' : 'Nothing found yet.'
}

export const startTop = () => {
  new IntersectionObserver(entries => topOnScreen(entries.at(-1).isIntersecting)).observe($('top'))
  listen(changed => { if (any(changed, 'network', 'net', 'top', 'layer', 'map', 'errors')) render() })
}
