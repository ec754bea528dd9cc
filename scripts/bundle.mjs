// Makes of each package's modules one file for Node, in dist: opening two hundred modules takes longer than all that
// they do. Bundlers take the modules, so that they can leave out what a program does not use. Run after tsc.
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Gives classes their names back: esbuild calls one that speaks of itself `_Tensor`. @param {string} code */
const named = (code) =>
  [...code.matchAll(/^var (\w+) = class _\1\b/gm)].reduce(
    (text, [, name]) => text.replaceAll(new RegExp(`\\b_${name}\\b`, 'g'), `${name}`),
    code,
  )

/** @param {string} name a folder in packages */
async function bundle(name) {
  const folder = join(root, 'packages', name)
  const outdir = join(folder, 'dist')
  const { exports } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  /** @type {{ node?: string, default: string }[]} */
  const entries = Object.values(exports)
  const { outputFiles } = await build({
    absWorkingDir: folder,
    entryPoints: entries.filter((entry) => entry.node).map((entry) => entry.default),
    outdir,
    bundle: true,
    // Entries share their modules: there is one Tensor.
    splitting: true,
    format: 'esm',
    // Node's modules are asked for at run time, where they are needed; seedrandom would load node:crypto for seeds that
    // nobody asks it for.
    platform: 'neutral',
    target: 'es2022',
    external: ['@tilegrad/*', 'mathjs', 'webgpu', 'crypto'],
    sourcemap: true,
    // The sources are in the package already.
    sourcesContent: false,
    write: false,
    logLevel: 'error',
  })
  // Programs may be running: what has not changed stays, and nothing is there by half.
  for (const { path, text } of outputFiles) {
    const contents = Buffer.from(path.endsWith('.js') ? named(text) : text)
    if (existsSync(path) && readFileSync(path).equals(contents)) continue
    writeFileSync(`${path}.draft`, contents)
    renameSync(`${path}.draft`, path)
  }
  // What an earlier build left: declarations and modules stay.
  const made = new Set(outputFiles.map(({ path }) => relative(outdir, path)))
  for (const file of readdirSync(outdir, { recursive: true, encoding: 'utf8' }))
    if (/\.js(\.map)?$/.test(file) && !made.has(file) && !/^modules\b/.test(file)) rmSync(join(outdir, file))
}

await Promise.all(['core', 'backend-cpu', 'backend-webgpu', 'nn'].map(bundle))
