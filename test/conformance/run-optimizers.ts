import { join } from 'node:path'
import { type Backend, data, scope, type Tensor, withBackend } from '@tilegrad/core'
import * as nn from '@tilegrad/nn'
import { difference, LOOSE, type Tolerance } from './compare.ts'
import { type Entry, readJson, Skip, type TensorEntry, Tensors, type Value } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'
import { runSchedules, type ScheduleCase } from './run-schedules.ts'

interface OptimizerCase {
  readonly optimizer: string
  readonly options: Readonly<Record<string, Entry>>
  readonly params: readonly TensorEntry[]
  /** Of each step. */
  readonly grads: readonly (readonly TensorEntry[])[]
  /** The parameters after each step. */
  readonly after: readonly (readonly TensorEntry[])[]
}

type Optimizer = nn.Optimizer<{ lr: number }>
const optimizers: Readonly<
  Record<string, new (params: Tensor[], options: Record<string, never>) => Optimizer>
> = {
  SGD: nn.SGD,
  Adam: nn.Adam,
  AdamW: nn.AdamW,
  RMSprop: nn.RMSprop,
  Adagrad: nn.Adagrad,
  Adafactor: nn.Adafactor,
  Muon: nn.Muon,
}
/** PyTorch iterates in bfloat16, whose numbers have three digits, and the iteration makes small ones larger. */
const MUON: Tolerance = { rtol: 0, atol: 2e-2 }

/** Runs the cases of `optimizers.json` whose name matches: trajectories on the backend, and rates of schedules. */
export async function runOptimizers(
  dir: string,
  backend: Backend,
  only: RegExp,
  report: Report,
): Promise<void> {
  const { cases, schedules } = readJson(join(dir, 'optimizers.json')) as {
    cases: readonly OptimizerCase[]
    schedules: readonly ScheduleCase[]
  }
  const tensors = new Tensors(join(dir, 'optimizers.safetensors'), backend)
  for (const [i, c] of cases.entries()) {
    const name = `optim.${c.optimizer}.${i}`
    if (only.test(name)) report.add(name, await runCase(c, tensors, backend))
  }
  runSchedules(schedules, only, report)
}

const camel = (name: string): string => name.replace(/_([a-z0-9])/g, (_, c: string) => c.toUpperCase())

async function runCase(c: OptimizerCase, tensors: Tensors, backend: Backend): Promise<Outcome> {
  const Kind = optimizers[c.optimizer]
  if (!Kind) return skipped(`no optimizer ${c.optimizer} here`)
  const params: Tensor[] = []
  try {
    for (const { tensor } of c.params) params.push(nn.parameter(tensors.load(tensor)))
    const options: Record<string, Value> = {}
    for (const [name, entry] of Object.entries(c.options)) options[camel(name)] = tensors.decode(entry, [])
    if (c.optimizer === 'SGD' && 'maximize' in options) throw new Skip('SGD: no option maximize here')
    const optimizer = new Kind(params, options as Record<string, never>)
    for (const [step, grads] of c.grads.entries()) {
      withBackend(backend, () =>
        scope(() => {
          for (const [i, p] of params.entries()) p.grad = tensors.load(grads[i].tensor).keep()
          optimizer.step()
          optimizer.zeroGrad()
        }),
      )
      for (const [i, p] of params.entries()) {
        const want = tensors.values(c.after[step][i].tensor)
        const why = difference(await data(p.detach()), want, p.shape, c.optimizer === 'Muon' ? MUON : LOOSE)
        if (why) return failed(`parameter ${i} after step ${step + 1}: ${why}`)
      }
    }
    optimizer.dispose()
    return PASSED
  } catch (error) {
    if (error instanceof Skip) return skipped(error.message)
    return failed(error instanceof Error ? `${error.name}: ${error.message}` : String(error))
  } finally {
    for (const p of params) p.dispose()
  }
}
