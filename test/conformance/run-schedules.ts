import { tensor } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import { difference, type Tolerance } from './compare.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'

type Options = Readonly<Record<string, unknown>>

export interface ScheduleCase {
  readonly schedule: string
  readonly options: Options
  readonly parts?: readonly (readonly [string, Options])[]
  readonly losses?: readonly number[]
  /** Rates of two groups before each step. */
  readonly rates?: readonly (readonly number[])[]
}

/** Double precision on both sides; PyTorch multiplies its rates step by step, and rounds each time. */
const RATES: Tolerance = { rtol: 1e-12, atol: 1e-15 }

const camel = (name: string): string =>
  name.replace(/_([a-z0-9])/g, (_, c: string) => c.toUpperCase()).replace(/^T/, 't')
const camelled = (options: Options): Options =>
  Object.fromEntries(Object.entries(options).map(([name, value]) => [camel(name), value]))

type MakeScheduler = new (optimizer: nn.AnyOptimizer, ...rest: unknown[]) => { step(metric?: number): void }

/** Compares the rates of the schedules whose name matches. */
export function runSchedules(cases: readonly ScheduleCase[], only: RegExp, report: Report): void {
  for (const [i, c] of cases.entries()) {
    const name = `schedule.${c.schedule}.${i}`
    if (!only.test(name)) continue
    try {
      report.add(name, runSchedule(c))
    } catch (error) {
      report.add(name, failed(error instanceof Error ? `${error.name}: ${error.message}` : String(error)))
    }
  }
}

/** What PyTorch names and is given here by its place. */
const POSITIONAL: Readonly<Record<string, readonly string[]>> = {
  StepLR: ['stepSize'],
  MultiStepLR: ['milestones'],
  ExponentialLR: ['gamma'],
  CosineAnnealingLR: ['tMax'],
  CosineAnnealingWarmRestarts: ['t0'],
  OneCycleLR: ['maxLr'],
  CyclicLR: ['baseLr', 'maxLr'],
  LambdaLR: ['lambda'],
  MultiplicativeLR: ['lambda'],
}

/** The functions that the fixtures name by their Python. */
const LAMBDAS: Readonly<Record<string, nn.LRLambda>> = {
  '0.5 ** epoch': (epoch) => 0.5 ** epoch,
  '0.9': () => 0.9,
}

function make(optimizer: nn.AnyOptimizer, name: string, given: Options) {
  const Class = (nn as unknown as Record<string, MakeScheduler | undefined>)[name]
  if (!Class) throw new Error(`there is no scheduler ${name}`)
  const options: Record<string, unknown> = { ...camelled(given) }
  const positional = (POSITIONAL[name] ?? []).map((key) => {
    const value = options[key]
    delete options[key]
    return key === 'lambda' ? LAMBDAS[value as string] : value
  })
  return new Class(optimizer, ...positional, ...(Object.keys(options).length > 0 ? [options] : []))
}

function runSchedule(c: ScheduleCase): Outcome {
  if (!c.rates) return skipped(`${c.schedule} is no schedule of rates`)
  const params = [0.4, 0.1].map((lr) => ({ params: [nn.parameter(tensor([1]))], lr }))
  const optimizer = new nn.SGD(params, { momentum: 0.9 })
  const parts = c.parts?.map(([name, options]) => make(optimizer, name, options)) as
    | nn.LRScheduler[]
    | undefined
  const scheduler = !parts
    ? make(optimizer, c.schedule, c.options)
    : c.schedule === 'SequentialLR'
      ? new nn.SequentialLR(optimizer, parts, c.options.milestones as number[])
      : new nn.ChainedScheduler(parts)
  for (const [i, want] of c.rates.entries()) {
    const got = optimizer.paramGroups.map((group) => group.lr)
    const why = difference(Float64Array.from(got), Float64Array.from(want), [want.length], RATES)
    if (why) return failed(`rates of step ${i}: ${why}`)
    scheduler.step(c.losses?.[i])
  }
  return PASSED
}
