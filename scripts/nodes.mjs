// The other Node that tests run on: V8 makes other machine code of the same WebAssembly from Node 24 on. The oldest and
// the current one come from npm, as packages of one binary each (test/package.json).
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { root } from './setup.mjs'

const manifest = join(root, 'test', 'package.json')
const running = Number.parseInt(process.versions.node, 10)

/**
 * The current Node where an older one runs this, else the oldest that tilegrad supports; or why there is none. `missing`
 * is true where it should have been installed.
 * @returns {{ name: string, path?: string, why: string, missing: boolean }}
 */
export function otherNode() {
  const major = running < 24 ? 26 : 20
  const name = `Node ${major}`
  const { platform, arch } = process
  const dependency = `node-${major}-${platform}-${arch}`
  const listed = JSON.parse(readFileSync(manifest, 'utf8')).optionalDependencies
  if (!listed[dependency]) return { name, why: `npm has none for ${platform}-${arch}`, missing: false }
  try {
    const file = createRequire(manifest).resolve(`${dependency}/package.json`)
    const path = join(dirname(file), JSON.parse(readFileSync(file, 'utf8')).bin.node)
    const { status, stdout, stderr, error } = spawnSync(path, ['-p', 'process.version'], { encoding: 'utf8' })
    if (status === 0) return { name: `Node ${stdout.trim().slice(1)}`, path, why: '', missing: false }
    return { name, why: `it does not start: ${error ?? stderr.trim()}`, missing: true }
  } catch {
    return { name, why: `${dependency} is not installed: pnpm install`, missing: true }
  }
}
