// Prints, per package, the lines of code and the size of its minified bundle (without the packages it imports
// from here), and for tilegrad the size of everything together.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, gzipSync } from 'node:zlib'
import { build as bundle } from 'esbuild'
import ts from 'typescript'
import { root } from './setup.mjs'

/** Lines that hold more than blanks and comments. @param {string} file */
function linesOfCode(file) {
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.Latest, true)
  const lines = new Set()
  /** @param {ts.Node} node */
  const visit = (node) => {
    if (ts.isJSDoc(node)) return
    const children = node.getChildren()
    if (children.length) return children.forEach(visit)
    if (node.getStart() === node.end) return
    const last = source.getLineAndCharacterOfPosition(node.end).line
    for (let line = source.getLineAndCharacterOfPosition(node.getStart()).line; line <= last; line++)
      lines.add(line)
  }
  visit(source)
  return lines.size
}

/** @param {string} entry @param {string[]} external */
async function sizes(entry, external) {
  const result = await bundle({
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    external: ['node:*', 'mathjs', ...external],
    logLevel: 'error',
  })
  const code = result.outputFiles[0]?.contents ?? new Uint8Array()
  return [code.length, gzipSync(code, { level: 9 }).length, brotliCompressSync(code).length]
}

const kB = (/** @type {number} */ bytes) => `${(bytes / 1000).toFixed(1)} kB`
/** @type {string[][]} */
const rows = [['', 'lines of code', 'minified', 'gzip', 'brotli']]
let total = 0
for (const name of readdirSync(join(root, 'packages'))) {
  const folder = join(root, 'packages', name)
  if (!existsSync(join(folder, 'src'))) continue
  const files = readdirSync(join(folder, 'src'), { recursive: true, encoding: 'utf8' })
  const lines = files
    .filter((file) => file.endsWith('.ts'))
    .reduce((sum, file) => sum + linesOfCode(join(folder, 'src', file)), 0)
  total += lines
  const own = await sizes(join(folder, 'dist', 'index.js'), ['@tilegrad/*'])
  rows.push([name, `${lines}`, ...own.map(kB)])
}
const whole = await sizes(join(root, 'packages', 'tilegrad', 'dist', 'index.js'), [])
rows.push(['everything', `${total}`, ...whole.map(kB)])
for (const [name = '', ...cells] of rows) {
  console.log(name.padEnd(16) + cells.map((cell) => cell.padStart(15)).join(''))
}
