// Prints, per package, the lines of code and the size of its minified bundle (without the packages it imports
// from here), then what a program of one line takes and how long importing does, beside jax-js in the same run.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, gzipSync } from 'node:zlib'

import ts from 'typescript'
import { bundled } from './bundled.mjs'
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

const kB = (/** @type {number} */ bytes) => `${(bytes / 1000).toFixed(1)} kB`
/** @param {Uint8Array[]} files */
const cells = (files) => [
  kB(files.reduce((sum, file) => sum + file.length, 0)),
  kB(files.reduce((sum, file) => sum + gzipSync(file, { level: 9 }).length, 0)),
  kB(files.reduce((sum, file) => sum + brotliCompressSync(file).length, 0)),
]
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
  const { exports } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const own = await bundled(`export * from '${exports['.'].default}'`, folder, ['@tilegrad/*'])
  rows.push([name, `${lines}`, ...cells(own.all)])
}
const bench = join(root, 'bench')
const whole = await bundled(`export * from 'tilegrad'`, bench)
rows.push(['everything', `${total}`, ...cells(whole.all)])
// The one-line program of each, and what it loads before a GPU is asked for.
const ours = await bundled(`import { tensor } from 'tilegrad'; console.log(tensor([1, 2, 3]).mul(2))`, bench)
const theirs = await bundled(
  `import { numpy as np } from '@jax-js/jax'; console.log(np.array([1, 2, 3]).mul(2))`,
  bench,
)
rows.push(['one line', '', ...cells(ours.first)])
rows.push(['one line, jax-js', '', ...cells(theirs.first)])
for (const [name = '', ...cells] of rows) {
  console.log(name.padEnd(18) + cells.map((cell) => cell.padStart(15)).join(''))
}

const programs = {
  import: ["await import('tilegrad')", "await import('@jax-js/jax')"],
  // What is loaded at first use is in this one.
  'one line': [
    "const { tensor } = await import('tilegrad'); await tensor([1, 2, 3]).mul(2).data()",
    "const { numpy: np } = await import('@jax-js/jax'); await np.array([1, 2, 3]).mul(2).data()",
  ],
}

/** Milliseconds that a program takes in a fresh process, without the start of Node. @param {string} program */
function milliseconds(program) {
  const code = `const start = performance.now(); ${program}; console.log(performance.now() - start); process.exit()`
  const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd: bench,
    encoding: 'utf8',
  })
  return Number(stdout)
}
const median = (/** @type {number[]} */ list) => list.sort((a, b) => a - b)[list.length >> 1] ?? Number.NaN
for (const [name, list] of Object.entries(programs)) {
  /** @type {number[][]} */
  const times = list.map(() => [])
  for (let run = 0; run < 21; run++) list.forEach((program, i) => times[i]?.push(milliseconds(program)))
  const [mine = Number.NaN, other = Number.NaN] = times.map(median)
  console.log(
    `${name}, median of 21 fresh processes in turn: ${mine.toFixed(1)} ms; jax-js ${other.toFixed(1)} ms; ratio ${(mine / other).toFixed(2)}`,
  )
}
