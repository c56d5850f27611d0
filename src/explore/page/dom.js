// Elements and numbers as text. Text is only ever set as text: what a server sends is hostile.

/** The element with this id, which the page has. @param {string} id @returns {any} */
export const $ = id => document.getElementById(id)

/**
 * An element with attributes and children. `on...` functions are listened with, `true` is an attribute
 * without a value, and what is null or false is left out.
 * @param {string} tag
 * @param {Record<string, any>} attributes
 * @param {...(Node | string)} children
 */
export const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (typeof value === 'function') element.addEventListener(name.slice(2), value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children)
  return element
}

/** A button; `label` is for screen readers and the tooltip where the text alone says too little. */
export const button = (text, attributes = {}) => make('button', { type: 'button', ...attributes }, text)

/** The buttons under a picture: `what` names it for save.js, `words` for screen readers. */
export const saving = (what, words) => make('span', { class: 'saves' },
  button('PNG', { class: 'save', 'data-save': what, 'aria-label': `Save ${words} as PNG` }),
  button('Report', { class: 'save keep', 'data-keep': what, 'aria-label': `Add ${words} to the report`, title: "Add to the run's report" }))

/** Whether a toggle is on, said to eyes and to screen readers. */
export const press = (element, on) => element.setAttribute('aria-pressed', String(!!on))

const signed = n => String(n).replace('-', '−')

/** A number as the program's other pages print it. @param {number} v */
export const short = v => {
  if (!Number.isFinite(v)) return 'not finite'
  const size = Math.abs(v)
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return signed(v.toExponential(2))
  return signed(v.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : size > 0 ? 3 : 0))
}

/** A whole number with a proper minus. */
export const whole = n => signed(n)

export const many = n => n.toLocaleString('en')

/** A probability in percent, with more digits where there is less of it. @param {number} p */
export const percent = p => {
  const v = p * 100
  if (v > 0 && v < 0.1) return '< 0.1%'
  if (v > 99.9 && v < 100) return '> 99.9%'
  return `${v.toFixed(v < 10 || (v > 99 && v < 100) ? 1 : 0)}%`
}

export const clamp = (v, low, high) => Math.min(Math.max(v, low), high)
