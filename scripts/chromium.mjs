// Unpacks what the npm package @sparticuz/chromium (Linux on x64) holds: a headless Chromium, the libraries it needs,
// and SwiftShader, a Vulkan driver in software. Each folder is made once, under node_modules/.cache.
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { brotliDecompressSync } from 'node:zlib'
import { root } from './setup.mjs'

const source = join(root, 'node_modules', '@sparticuz', 'chromium')

/** Whether this machine can run what is in the package. */
export const usable = process.platform === 'linux' && process.arch === 'x64'

/** A folder with SwiftShader under the name of the Vulkan loader: Dawn finds it through LD_LIBRARY_PATH. */
export const swiftshader = () =>
  once('swiftshader', (folder) => {
    const library = untar('swiftshader').find(({ name }) => name === 'libvk_swiftshader.so')
    if (!library) throw new Error(`${source} holds no libvk_swiftshader.so`)
    writeFileSync(join(folder, 'libvulkan.so.1'), library.data)
  })

/** The browser's file, and the folder of libraries and fonts it may miss. */
export function chromium() {
  const folder = once('chromium', (folder) => {
    writeFileSync(join(folder, 'chromium'), unpack('chromium.br'), { mode: 0o755 })
    for (const { name, data } of ['swiftshader', 'al2023', 'fonts'].flatMap(untar)) {
      mkdirSync(dirname(join(folder, name)), { recursive: true })
      writeFileSync(join(folder, name), data)
    }
  })
  return { executable: join(folder, 'chromium'), libraries: join(folder, 'lib'), fonts: folder }
}

/**
 * Makes a folder under another name first: whoever finds it finds it whole.
 * @param {string} name @param {(folder: string) => void} fill
 */
function once(name, fill) {
  const { version } = JSON.parse(readFileSync(join(source, 'package.json'), 'utf8'))
  const folder = join(root, 'node_modules', '.cache', 'tilegrad', `${name}-${version}`)
  if (existsSync(folder)) return folder
  const draft = `${folder}.${process.pid}`
  mkdirSync(draft, { recursive: true })
  try {
    fill(draft)
    renameSync(draft, folder)
  } catch (error) {
    rmSync(draft, { recursive: true, force: true })
    // Another process was quicker.
    if (!existsSync(folder)) throw error
  }
  return folder
}

/** @param {string} file */
const unpack = (file) => brotliDecompressSync(readFileSync(join(source, 'bin', file)))

/**
 * The plain files of an archive (ustar, short names).
 * @param {string} archive
 */
function untar(archive) {
  const tar = unpack(`${archive}.tar.br`)
  const files = []
  for (let at = 0; tar[at]; ) {
    const field = (/** @type {number} */ start, /** @type {number} */ end) =>
      tar.toString('latin1', at + start, at + end).replace(/\0.*/s, '')
    const size = Number.parseInt(field(124, 136), 8)
    const plain = field(156, 157) === '0' || field(156, 157) === ''
    if (plain) files.push({ name: field(0, 100), data: tar.subarray(at + 512, at + 512 + size) })
    at += 512 + Math.ceil(size / 512) * 512
  }
  return files
}
