import { existsSync, statSync } from 'node:fs'
import { parseArgs } from 'node:util'
import type { WebGpuBackend } from '@tilegrad/backend-webgpu'
import { type Backend, reference } from '@tilegrad/core'
import type { Half } from './compare.ts'
import { countMatrixKernels } from './matrix-kernels.ts'
import { failed } from './report.ts'
import { runConformance } from './run.ts'

const USAGE =
  'usage: pnpm conformance --fixtures DIR [--backend reference|cpu|webgpu] [--only REGEX] [--half float16|bfloat16] [--matrices]'

/** What is wrong with how the program was called. */
class UsageError extends Error {}

interface Options {
  readonly fixtures: string
  readonly backend: string
  readonly only: RegExp
  readonly half?: Half
  readonly matrices: boolean
}

function parse(args: readonly string[]): Options | 'help' {
  const { values } = parseArgs({
    // Some versions of pnpm hand on the -- that separates their own options.
    args: args[0] === '--' ? args.slice(1) : [...args],
    options: {
      fixtures: { type: 'string' },
      backend: { type: 'string', default: 'reference' },
      only: { type: 'string', default: '' },
      // Attention and models are computed in 16 bits.
      half: { type: 'string' },
      // It is a failure if nothing ran on subgroup matrices.
      matrices: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) return 'help'
  const { fixtures, backend, only, half, matrices } = values
  if (half !== undefined && half !== 'float16' && half !== 'bfloat16')
    throw new UsageError(`--half is '${half}'; expected float16 or bfloat16`)
  if (matrices && backend !== 'webgpu') throw new UsageError(`only webgpu has --matrices`)
  if (!fixtures) throw new UsageError(`--fixtures is missing; ${USAGE}`)
  if (!existsSync(fixtures) || !statSync(fixtures).isDirectory())
    throw new UsageError(`${fixtures} is no directory`)
  return { fixtures, backend, only: new RegExp(only), matrices, ...(half && { half }) }
}

const MAKERS: Readonly<Record<string, [module: string, maker: string]>> = {
  cpu: ['@tilegrad/backend-cpu', 'createCpuBackend'],
  webgpu: ['@tilegrad/backend-webgpu', 'createWebGpuBackend'],
}

/** A backend by name; cpu and webgpu are loaded only when asked for. */
async function backendNamed(name: string): Promise<Backend> {
  if (name === 'reference') return reference
  if (!MAKERS[name]) throw new UsageError(`there is no backend '${name}'; expected reference, cpu or webgpu`)
  const [module, maker] = MAKERS[name]
  const loaded = (await import(module)) as Record<string, unknown>
  const create = loaded[maker]
  if (typeof create !== 'function')
    throw new UsageError(`backend ${name} is not there yet: ${module} has no ${maker}`)
  return (await create()) as Backend
}

/**
 * Runs the command line and returns its exit code: 0 if nothing failed, 1 if a case did, 2 if it could not run as it
 * was called.
 */
export async function main(args: readonly string[], print: (line: string) => void): Promise<number> {
  try {
    const options = parse(args)
    if (options === 'help') {
      print(USAGE)
      return 0
    }
    const { fixtures, only, half } = options
    const backend = await backendNamed(options.backend)
    const ran = options.matrices ? countMatrixKernels(backend as WebGpuBackend) : null
    const report = await runConformance(fixtures, backend, { only, print, ...(half && { half }) })
    if (ran) {
      for (const [label, n] of ran) print(`on subgroup matrices: ${n} × ${label}`)
      if (ran.size === 0) report.add('matrices', failed('no kernel ran on subgroup matrices'))
    }
    report.end()
    return report.failed > 0 ? 1 : 0
  } catch (error) {
    print(`conformance: ${(error as Error).message.split('\n')[0]}`)
    return 2
  }
}
