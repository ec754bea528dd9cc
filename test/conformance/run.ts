import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Backend } from '@tilegrad/core'
import type { Half } from './compare.ts'
import { Report } from './report.ts'
import { runAttention } from './run-attention.ts'
import { modelsIn, runModels } from './run-models.ts'
import { runModules } from './run-modules.ts'
import { runOps } from './run-ops.ts'
import { runOptimizers } from './run-optimizers.ts'
import { runTrajectory } from './run-trajectory.ts'

type Runner = (dir: string, backend: Backend, only: RegExp, report: Report, half?: Half) => Promise<void>

/** The kinds of fixtures, by the stem of their `.json` and `.safetensors`. */
const KINDS: Readonly<Record<string, Runner>> = {
  ops: runOps,
  modules: runModules,
  optimizers: runOptimizers,
  attention: runAttention,
  trajectory: runTrajectory,
}

interface Conformance {
  readonly only?: RegExp
  readonly print?: (line: string) => void
  /** Attention and models in 16 bits, though PyTorch's are of float32. */
  readonly half?: Half
}

/** Runs every fixture of a directory on a backend. @throws Error if there is none. */
export async function runConformance(
  dir: string,
  backend: Backend,
  { only = /(?:)/, print = console.log, half }: Conformance = {},
): Promise<Report> {
  const report = new Report(print)
  const kinds: [string, Runner][] = Object.entries(KINDS).filter(([stem]) =>
    existsSync(join(dir, `${stem}.json`)),
  )
  if (modelsIn(dir).length > 0) kinds.push(['models', runModels])
  if (kinds.length === 0)
    throw new Error(
      `${dir} holds none of ${Object.keys(KINDS)
        .map((stem) => `${stem}.json`)
        .join(', ')}, and no folder with a checkpoint and golden.safetensors`,
    )
  for (const [stem, runner] of kinds) {
    const start = performance.now()
    const before = report.passed + report.failed + report.skipped
    await runner(dir, backend, only, report, half)
    const n = report.passed + report.failed + report.skipped - before
    print(`${stem}: ${n} cases on ${backend.name}, ${((performance.now() - start) / 1000).toFixed(1)} s`)
  }
  return report
}
