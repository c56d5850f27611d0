// The enlarged view of a figure's picture, with the file and box it is of. Without this script a picture's
// link opens its file, and the details stand under it.
(() => {
  const view = document.querySelector('.large')
  for (const link of document.querySelectorAll('.picture a')) {
    link.addEventListener('click', event => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return
      event.preventDefault()
      const bar = document.createElement('div')
      bar.className = 'bar'
      const title = document.createElement('h2')
      title.textContent = link.querySelector('img').alt
      const close = document.createElement('button')
      close.textContent = 'Close'
      close.addEventListener('click', () => view.close())
      bar.append(title, close)
      view.replaceChildren(bar, link.closest('.picture').cloneNode(true))
      view.showModal()
      close.focus()
    })
  }
  view.addEventListener('click', event => { if (event.target === view) view.close() })
})()
