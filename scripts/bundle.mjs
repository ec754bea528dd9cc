// Makes of each package's modules one file for Node, in dist: opening two hundred modules takes longer than all that
// they do. Bundlers take the modules, so that they can leave out what a program does not use. Run after tsc.
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build, transform } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Gives classes their names back: esbuild calls one that speaks of itself `_Tensor`. @param {string} code */
const named = (code) =>
  [...code.matchAll(/^var (\w+) = class _\1\b/gm)].reduce(
    (text, [, name]) => text.replaceAll(new RegExp(`\\b_${name}\\b`, 'g'), `${name}`),
    code,
  )

const common = /** @type {const} */ ({
  bundle: true,
  // Node's modules are asked for at run time, where they are needed; seedrandom would load node:crypto for seeds that
  // nobody asks it for.
  platform: 'neutral',
  target: 'es2022',
  sourcemap: true,
  // The sources are in the package already.
  sourcesContent: false,
  logLevel: 'error',
})
const external = [
  '@tilegrad/*',
  'crypto',
  'hyparquet',
  'hyparquet-compressors',
  'mathjs',
  'papaparse',
  'webgpu',
]

/** Puts entry-on-demand.js in the place of entry.js. @type {import('esbuild').Plugin} */
const onDemand = {
  name: 'on demand',
  setup: ({ onResolve }) =>
    onResolve({ filter: /^\.\/entry\.js$/ }, ({ resolveDir }) => ({
      path: join(resolveDir, 'entry-on-demand.js'),
    })),
}

/**
 * The CPU's engine as a function of the modules that it shares, which are loaded already.
 * @param {string} entry
 * @param {string} outfile
 */
async function engine(entry, outfile) {
  const { outputFiles } = await build({
    ...common,
    write: false,
    entryPoints: [entry],
    outfile,
    format: 'esm',
    external: [...external, './errors.js', '../errors.js'],
  })
  return outputFiles.map(({ path, text }) => {
    if (path !== outfile) return { path, text }
    const body = text
      .replaceAll(
        /^import \{(.*)\} from "@tilegrad\/core(\/kernel)?";$/gm,
        (_, names, kernel) => `const {${names.replaceAll(' as ', ': ')}} = ${kernel ? 'kernel' : 'core'};`,
      )
      .replace(/^import \* as (\w+) from "@tilegrad\/core";$/m, 'const $1 = core;')
      .replace(
        /^import \{ WorkerDiedError \} from "\.{1,2}\/errors\.js";$/m,
        'const { WorkerDiedError } = errors;',
      )
      .replace(/^export \{([^}]*)\};$/m, 'return {$1}\n})')
    if (/^(import|export)\b/m.test(body))
      throw new Error(`${outfile}: imports or exports what is not known here`)
    // In brackets, V8 compiles a function at once instead of looking through it twice. Lines stay: the map counts them.
    return { path, text: `module.exports = (function (core, kernel, errors) { 'use strict'; ${body}` }
  })
}

/** Makes the code of workers short, which is a string that no bundler looks into. @param {string} file */
async function shorten(file) {
  const text = readFileSync(file, 'utf8')
  const template = /^export const workerSource = `[\s\S]*?^`;$/m
  if (!template.test(text)) return
  const { workerSource } = await import(pathToFileURL(file).href)
  const { code } = await transform(workerSource, { minify: true, target: common.target })
  writeFileSync(
    file,
    text.replace(template, () => `export const workerSource = ${JSON.stringify(code)};`),
  )
}

/** @param {string} name a folder in packages */
async function bundle(name) {
  const folder = join(root, 'packages', name)
  const outdir = join(folder, 'dist')
  const source = join(outdir, 'modules', 'machine', 'worker-source.js')
  if (existsSync(source)) await shorten(source)
  const { exports } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  /** @type {{ node?: string, default: string }[]} */
  const entries = Object.values(exports)
  const { outputFiles } = await build({
    ...common,
    write: false,
    absWorkingDir: folder,
    entryPoints: entries.filter((entry) => entry.node).map((entry) => entry.default),
    outdir,
    // Entries share their modules: there is one Tensor.
    splitting: true,
    format: 'esm',
    external,
    plugins: [onDemand],
  })
  /** @type {{ path: string, text: string }[]} */
  const files = outputFiles
  const entry = join(outdir, 'modules', 'entry.js')
  if (existsSync(entry)) files.push(...(await engine(entry, join(outdir, 'engine.cjs'))))
  // Programs may be running: what has not changed stays, and nothing is there by half.
  for (const { path, text } of files) {
    const contents = Buffer.from(/js$/.test(path) ? named(text) : text)
    if (existsSync(path) && readFileSync(path).equals(contents)) continue
    writeFileSync(`${path}.draft`, contents)
    renameSync(`${path}.draft`, path)
  }
  // What an earlier build left: declarations and modules stay.
  const made = new Set(files.map(({ path }) => relative(outdir, path)))
  for (const file of readdirSync(outdir, { recursive: true, encoding: 'utf8' }))
    if (/\.c?js(\.map)?$/.test(file) && !made.has(file) && !/^modules\b/.test(file))
      rmSync(join(outdir, file))
}

await Promise.all(['core', 'backend-cpu', 'backend-webgpu', 'data', 'nn'].map(bundle))
