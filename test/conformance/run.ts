import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Backend } from '@tilegrad/core'
import { Report } from './report.ts'
import { runAttention } from './run-attention.ts'
import { runOps } from './run-ops.ts'
import { runTrajectory } from './run-trajectory.ts'

type Runner = (dir: string, backend: Backend, only: RegExp, report: Report) => Promise<void>

/** The kinds of fixtures, by the stem of their `.json` and `.safetensors`. */
const KINDS: Readonly<Record<string, Runner>> = {
  ops: runOps,
  attention: runAttention,
  trajectory: runTrajectory,
}

/** Runs every fixture of a directory on a backend. @throws Error if there is none. */
export async function runConformance(
  dir: string,
  backend: Backend,
  { only = /(?:)/, print = console.log }: { only?: RegExp; print?: (line: string) => void } = {},
): Promise<Report> {
  const report = new Report(print)
  const stems = Object.keys(KINDS).filter((stem) => existsSync(join(dir, `${stem}.json`)))
  if (stems.length === 0)
    throw new Error(
      `${dir} holds none of ${Object.keys(KINDS)
        .map((stem) => `${stem}.json`)
        .join(', ')}`,
    )
  const unknown = readdirSync(dir).filter((name) => statSync(join(dir, name)).isDirectory())
  if (unknown.length > 0) print(`not read: ${unknown.join(', ')}`)
  for (const stem of stems) {
    const start = performance.now()
    const before = report.passed + report.failed + report.skipped
    await KINDS[stem](dir, backend, only, report)
    const n = report.passed + report.failed + report.skipped - before
    print(`${stem}: ${n} cases on ${backend.name}, ${((performance.now() - start) / 1000).toFixed(1)} s`)
  }
  return report
}
