// Pictures from outside: chosen as a file, dropped or pasted. What the server does not read is made a JPEG here.

import * as api from './api.js'
import { $ } from './dom.js'
import { goTo } from './load.js'
import { state } from './state.js'

const READ = ['image/jpeg', 'image/png']

/** The longest side of a picture that has to be made smaller. */
const LONGEST = 2048

const jpegOf = async blob => {
  let bitmap
  try {
    bitmap = await createImageBitmap(blob)
  } catch {
    throw new Error('This file is not a picture that this browser can read.')
  }
  const k = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height))
  const canvas = document.createElement('canvas')
  canvas.width = Math.max(1, Math.round(bitmap.width * k))
  canvas.height = Math.max(1, Math.round(bitmap.height * k))
  const context = canvas.getContext('2d')
  // A JPEG has no transparency: white, as on paper.
  context.fillStyle = '#fff'
  context.fillRect(0, 0, canvas.width, canvas.height)
  context.imageSmoothingQuality = 'high'
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
  return new Promise((resolve, reject) => canvas.toBlob(b => (b ? resolve(b) : reject(new Error('The picture could not be made a JPEG.'))), 'image/jpeg', 0.95))
}

/** Shows a picture of the reader's. @param {Blob} blob @param {(text: string) => void} tell */
export const take = async (blob, tell) => {
  try {
    let told = ''
    if (!READ.includes(blob.type) || blob.size > state.network.upload_limit) {
      if (blob.size > state.network.upload_limit) told = `The picture is larger than the server takes, so it was made smaller (at most ${LONGEST} pixels a side).`
      blob = await jpegOf(blob)
    }
    const { id } = await api.upload(blob)
    tell(told)
    goTo(id)
  } catch (error) {
    tell(error.message)
  }
}

/** @param {(text: string) => void} tell */
export const startUpload = tell => {
  const files = list => [...list ?? []].find(file => file.type.startsWith('image/')) ?? null
  $('upload').addEventListener('click', () => $('file').click())
  $('file').addEventListener('change', event => {
    const [file] = event.target.files
    if (file) take(file, tell)
    event.target.value = ''
  })
  let over = 0
  addEventListener('dragenter', event => { event.preventDefault(); over++; $('drop').hidden = false })
  addEventListener('dragleave', () => { if (--over <= 0) { over = 0; $('drop').hidden = true } })
  addEventListener('dragover', event => event.preventDefault())
  addEventListener('drop', event => {
    event.preventDefault()
    over = 0
    $('drop').hidden = true
    const file = files(event.dataTransfer?.files)
    if (file) take(file, tell)
    else tell('What was dropped is not a picture file. Save it first, then drop the file.')
  })
  addEventListener('paste', event => {
    const file = files(event.clipboardData?.files)
    if (file) { event.preventDefault(); take(file, tell) }
  })
}
