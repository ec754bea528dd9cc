// Finds a WebGPU adapter for Node: the machine's own, or where it has none SwiftShader, which runs in software.
// TILEGRAD_ADAPTER=software takes SwiftShader in any case. As a program: prints the adapter's name, if there is one.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { delimiter, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { swiftshader, usable } from './chromium.mjs'
import { root } from './setup.mjs'

const self = fileURLToPath(import.meta.url)

/**
 * What to set in the environment of a process for it to have an adapter, and what that adapter is called. The dynamic
 * linker reads LD_LIBRARY_PATH when a process starts, so it must be set before.
 * @returns {{ env: Record<string, string>, adapter: string } | { env: undefined, why: string }}
 */
export function findAdapter() {
  const own = process.env.TILEGRAD_ADAPTER === 'software' ? undefined : probe({})
  if (own?.adapter) return { env: {}, adapter: own.adapter }
  if (!usable)
    return { env: undefined, why: `no GPU, and no software adapter for ${process.platform}-${process.arch}` }
  const paths = [swiftshader(), process.env.LD_LIBRARY_PATH].filter(Boolean)
  const env = { LD_LIBRARY_PATH: paths.join(delimiter) }
  const { adapter, output } = probe(env)
  return adapter ? { env, adapter } : { env: undefined, why: `SwiftShader does not start: ${output}` }
}

/** In a process of its own: a driver that crashes ends only that. @param {Record<string, string>} env */
function probe(env) {
  const options = {
    env: { ...process.env, ...env },
    encoding: /** @type {const} */ ('utf8'),
    timeout: 60_000,
  }
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, [self], options)
  return { adapter: status === 0 ? stdout.trim() : '', output: stderr.trim() || `exit ${signal ?? status}` }
}

if (process.argv[1] === self) {
  const { resolve } = createRequire(join(root, 'packages', 'backend-webgpu', 'package.json'))
  const { create } = await import(pathToFileURL(resolve('webgpu')).href)
  const instance = create([])
  const adapter = await instance.requestAdapter()
  if (adapter) console.log(adapter.info.description || adapter.info.device || 'unnamed GPU')
  // The instance must outlive its adapter.
  else console.error(`${instance} has no adapter`)
}
